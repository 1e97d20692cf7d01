"""By which library float32 products are made on which processor, and that they are exact."""

import pytest
import torch

from universal_neurons import processor

pytestmark = pytest.mark.usefixtures("by_onednn")
ZEN5 = "fpu avx2 avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16"
CASES = {
    "AMD with AVX-512": ("AuthenticAMD", ZEN5, True),
    "Intel": ("GenuineIntel", ZEN5, False),
    "AMD with AVX2 alone": ("AuthenticAMD", "fpu avx2", False),
    "AMD with matrix units, by which oneDNN would round": ("AuthenticAMD", f"{ZEN5} amx_tile amx_bf16", False),
    "nothing known": (None, None, False),
}


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Lets the processor be another: `on(vendor, flags)`."""

    def other(vendor, flags):
        cpuinfo = tmp_path / "cpuinfo"
        if vendor is not None:
            one = f"processor\t: {{}}\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n\n"
            cpuinfo.write_text(one.format(0) + one.format(1))
        monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
        forget()

    yield other
    monkeypatch.undo()
    forget()


def forget():
    processor._facts.cache_clear()
    processor.onednn_is_faster.cache_clear()


@pytest.mark.parametrize("case", CASES)
def test_onednn_multiplies_on_processors_of_which_mkl_uses_half(case, on, monkeypatch):
    vendor, flags, faster = CASES[case]
    monkeypatch.setattr(processor, "_is_exact", lambda: True)  # that of the processor the test runs on
    on(vendor, flags)
    assert processor.processor_flags() == set((flags or "").split())
    assert processor.onednn_is_faster() == faster


@pytest.mark.parametrize(
    "setting",
    [lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")],
    ids=["autocast", "another device"],
)
def test_a_callers_settings_do_not_decide(setting):
    forget()
    expected = processor.onednn_is_faster()
    forget()
    with setting():
        assert processor.onednn_is_faster() == expected


def test_where_its_products_were_rounded_it_would_not(on, monkeypatch):
    monkeypatch.setattr(processor, "float32_products", lambda *_: torch.autocast("cpu", torch.bfloat16))
    on("AuthenticAMD", ZEN5)
    assert not processor.onednn_is_faster()


@pytest.mark.parametrize("positions", [1, 7, 512, 5000])
@pytest.mark.parametrize("units", [1, 30, 770])
def test_exact_products_are_of_float32(positions, units):
    generator = torch.Generator().manual_seed(positions)
    left, right = (torch.randn(positions, units, generator=generator) for _ in range(2))
    with processor.exact_products("cpu"):
        product = left.T @ right
        linear = torch.nn.functional.linear(left, right[: min(positions, 64)])
    for made, exact in (
        (product, left.double().T @ right.double()),
        (linear, left.double() @ right[: min(positions, 64)].double().T),
    ):
        assert (made - exact).abs().max() < 1e-5 * max(1, exact.abs().max())


def test_it_is_left_to_torch_where_a_user_says_so(on, monkeypatch):
    monkeypatch.setattr(processor, "_is_exact", lambda: True)
    monkeypatch.setenv("UNEURONS_FLOAT32", "torch")
    on("AuthenticAMD", ZEN5)
    assert not processor.onednn_is_faster()
