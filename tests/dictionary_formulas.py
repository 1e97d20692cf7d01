"""What dictionaries compute, written out in NumPy from their papers and formats, without the package."""

from typing import Any

import numpy as np


def latents_of(x: np.ndarray, of: dict[str, Any]) -> np.ndarray:
    """Latents of x (positions × d_in); `of` holds weights and settings."""
    read = _normalised(x, of)[0] - (0 if of.get("b_in") is None else of["b_in"])
    before = read @ of["W_enc"]
    match of["activation"]:
        case "relu":
            return np.maximum(before + of["b_enc"], 0)
        case "jumprelu":
            pre = before + of["b_enc"]
            return np.where(pre > of["threshold"], np.maximum(pre, 0), 0)
        case "gated":
            opened = before + of["b_enc"] > 0
            return opened * np.maximum(before * np.exp(of["r_mag"]) + of["b_mag"], 0)
        case "topk":
            pre = before + of["b_enc"]
            least = np.sort(pre, 1)[:, -of["k"], None]
            return np.where(pre >= least, np.maximum(pre, 0), 0)
        case "groupmax":
            pre = (before + of["b_enc"]).reshape(len(x), of["k"], -1)
            return np.where(pre == pre.max(-1, keepdims=True), np.maximum(pre, 0), 0).reshape(len(x), -1)
    raise AssertionError(of["activation"])


def reconstruction_of(x: np.ndarray, of: dict[str, Any]) -> np.ndarray:
    """What an autoencoder makes of x."""
    _, shift, size = _normalised(x, of)
    return (latents_of(x, of) @ of["W_dec"] + of["b_dec"]) * size + shift


def _normalised(x: np.ndarray, of: dict[str, Any]) -> tuple[np.ndarray, Any, Any]:
    if of.get("centred"):
        x = x - x.mean(1, keepdims=True)
    if of.get("normalisation") == "layer_norm":
        mean, deviation = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        return (x - mean) / (deviation + 1e-5), mean, deviation
    if of.get("normalisation") == "unit_norm":
        size = np.sqrt((x**2).sum(1, keepdims=True) / x.shape[1])
        return x / size, 0, size
    scale = of.get("scale", 1.0)
    return x * scale, 0, 1 / scale
