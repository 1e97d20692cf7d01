"""What a neuron may be called: the families (what it fires on) and the roles (what it does)."""

UNEXPLAINED = "unexplained"
FAMILIES = (
    "unigram", "alphabet", "previous_token", "position", "syntax", "context", "token_class", "bos", UNEXPLAINED,
)  # fmt: skip
ROLES_BY_WEIGHTS = ("prediction", "suppression", "partition")  # which every neuron is asked about
ROLES = (
    *ROLES_BY_WEIGHTS, "entropy", "token_frequency", "attention_deactivation", "attention_activation",
)  # fmt: skip
