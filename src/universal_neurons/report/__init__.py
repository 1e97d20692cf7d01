"""What do people look at?  Figures, pages, and what a terminal and a notebook show.

other_threshold   a finished study at another threshold than its own
summary           a study in a few numbers and tables
facts             what was found of one model's neurons, in ten lines
opening           what a study asked and found, in plain sentences
sources           what the units of a study are, where they are no neurons
words             what the units are called in text that speaks of neurons
numbers           how a number is written
counts            counts over thresholds, beside untrained networks, of anchors and cliques, as lines
consistency       one-to-one matches, and layers as wholes, as rows of text
sinks             positions where the residual stream's norm stands out, and what they carry of the matches
verdict           what is to be said of one neuron in a sentence or two, and its ten numbers
counterparts      best matches by name, with what they fire on
family_strength   how much the labels of families explain, and how near the next ones come
universal         the universal neurons in one table, with counterparts and verdicts
explained_section  explanations in a report: what each source is worth, the best and the worst explained
explained         what explanations there are of units, and what they are worth
one_neuron        one neuron in the terminal
of_label          the neurons that a label explains best, in the terminal
label_list        all labels with their meaning, and how often those of a study hold
anchors           the neurons that are mutual in every model, in the terminal
diff_summary      a diff in numbers, lists and sentences; one unit before and after
diff_effects      what the units that changed most carry of a fine-tune's gain
dynamics_summary  the dynamics in numbers and sentences; one neuron at every checkpoint
figures/          tables to figures with captions, one file per kind
plots             figures one by one: store.plot, dynamics.plot, neuron.plot
drawing           figures as files and as pictures of a page, by two processes where there are two cores
pages             stores to self-contained pages
representations   what a terminal and a notebook show of a store
integrity         are the files of finished studies those that were written
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.report.anchors import anchors_view
    from universal_neurons.report.diff_summary import LISTS, UNUSUAL, diff_sentences, diff_view, unit_view, upper_end
    from universal_neurons.report.dynamics_summary import course_view, dynamics_view
    from universal_neurons.report.explained import explained_view
    from universal_neurons.report.family_strength import families_table
    from universal_neurons.report.figures import study_figures
    from universal_neurons.report.integrity import check_stores
    from universal_neurons.report.label_list import built_in_view, study_labels_view
    from universal_neurons.report.of_label import label_view
    from universal_neurons.report.one_neuron import neuron_view
    from universal_neurons.report.opening import opening_sentences
    from universal_neurons.report.other_threshold import at_threshold, threshold_sentence
    from universal_neurons.report.pages import (
        drawn_report,
        study_names,
        summary_html,
        write_diff_report,
        write_dynamics_report,
        write_joint_report,
        write_page,
        write_report,
    )
    from universal_neurons.report.sources import kind_said
    from universal_neurons.report.summary import roles_view, study_view
    from universal_neurons.report.words import NEURON, noun_of, spoken_of
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "summary": ["roles_view", "study_view"],
            "label_list": ["built_in_view", "study_labels_view"],
            "of_label": ["label_view"],
            "one_neuron": ["neuron_view"],
            "opening": ["opening_sentences"],
            "sources": ["kind_said"],
            "words": ["NEURON", "noun_of", "spoken_of"],
            "anchors": ["anchors_view"],
            "other_threshold": ["at_threshold", "threshold_sentence"],
            "diff_summary": ["LISTS", "UNUSUAL", "diff_sentences", "diff_view", "unit_view", "upper_end"],
            "dynamics_summary": ["course_view", "dynamics_view"],
            "explained": ["explained_view"],
            "family_strength": ["families_table"],
            "figures": ["study_figures"],
            "pages": [
                "drawn_report",
                "study_names",
                "summary_html",
                "write_diff_report",
                "write_dynamics_report",
                "write_joint_report",
                "write_page",
                "write_report",
            ],
            "integrity": ["check_stores"],
        },
    )
