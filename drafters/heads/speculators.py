"""The formats in which others keep EAGLE-3, DFlash and MTP drafters: the *speculators* library's, which is also
written, and the raw ones of EAGLE-3's authors and of z-lab.

In all of them a layer's number k names what goes into layer k, but for z-lab's, which name what comes out of it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from drafters.errors import DrafterError
from drafters.heads.eagle3 import eagle3_options
from drafters.heads.head import HeadConfig
from drafters.protocols import Target

WRITTEN = ("eagle3", "dflash")
"""Members that are written in the *speculators* format."""
_READ = (*WRITTEN, "mtp")

_VERSION = "0.9.0"
_WINDOW = 2048
"""tokens of the context that others' drafters look back to, where they do not say: what most were trained on"""
_AUX = {"eagle3": "eagle_aux_hidden_state_layer_ids", "dflash": "aux_hidden_state_layer_ids"}
_LENT = ("verifier_norm.weight", "verifier_lm_head.weight")
_BESIDE = frozenset(
    {"architectures", "auto_map", "block_size", "dflash_config", "num_target_layers", "draft_vocab_size"}
)


def is_known(described: dict[str, Any]) -> bool:
    """Whether a config.json is that of a drafter in one of these formats, or of their kin."""
    return "speculators_model_type" in described or _raw(described) is not None


def read(described: dict[str, Any], weights: dict[str, Tensor], target: Target) -> tuple[HeadConfig, dict[str, Tensor]]:
    """The configuration and the weights under our names. Raises DrafterError for a kind that Folio does not know."""
    weights = {name: tensor for name, tensor in weights.items() if name not in _LENT}
    kind = described.get("speculators_model_type")
    if kind is not None:
        if kind not in _READ:
            raise DrafterError(
                f"this drafter is of the kind {kind!r} of the speculators format; Folio reads {', '.join(_READ)}"
            )
        if kind == "mtp":
            weights = {name.replace("mtp_layers.", "layers."): tensor for name, tensor in weights.items()}
            return _of_mtp(described, target), weights
        return _of_speculators(kind, described, weights, target), weights
    if _raw(described) == "eagle3":
        weights = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in weights.items()}
        return _of_raw_eagle3(described, target), weights
    return _of_raw_dflash(described, target), weights


def write(config: HeadConfig) -> dict[str, Any]:
    """config.json of a head; what the format has no word for stands under `folio`."""
    guesses = {"proposal_type": "greedy", "speculative_tokens": config.depth}
    verifier: dict[str, Any] = {"name_or_path": config.target.get("name"), "architectures": []}
    own: dict[str, Any] = {
        "architectures": ["Eagle3DraftModel" if config.name == "eagle3" else "DFlashDraftModel"],
        "speculators_model_type": config.name,
        "speculators_version": _VERSION,
        "speculators_config": {
            "algorithm": config.name,
            "proposal_methods": [guesses],
            "default_proposal_method": "greedy",
            "verifier": verifier,
        },
        "transformer_layer_config": config.layer,
        "draft_vocab_size": config.draft_vocab or config.target["vocab_size"],
        _AUX[config.name]: list(config.reads),
        "folio": {"window": config.window, "depth": config.depth, "target": config.target},
    }
    if config.name == "eagle3":
        return own | config.options
    return own | {"block_size": config.depth + 1, "mask_token_id": config.options["mask_token"]}


def _of_speculators(kind: str, described: dict[str, Any], weights: dict[str, Tensor], target: Target) -> HeadConfig:
    layer = dict(described["transformer_layer_config"])
    ours = described.get("folio", {})
    vocab, count = layer.get("vocab_size", target.vocab_size), described.get("draft_vocab_size", 32000)
    about = ours.get("target") or {"vocab_size": vocab, "hidden_size": layer.get("hidden_size")}
    reads = described.get(_AUX[kind]) or _default_reads(target)
    common: dict[str, Any] = {
        "window": ours.get("window") or _window(layer),
        "layer": layer,
        "draft_vocab": 0 if count == vocab else count,
        "target": about,
    }
    if kind == "dflash":
        if described.get("sample_from_anchor"):
            raise DrafterError("this dflash drafter guesses at its anchor too (sample_from_anchor), which Folio cannot")
        if described.get("mask_token_id") is None:
            raise DrafterError("this dflash drafter names no mask_token_id")
        options = {"mask_token": int(described["mask_token_id"])}
        return HeadConfig("dflash", tuple(reads), int(described["block_size"]) - 1, options=options, **common)
    depth = ours.get("depth") or _speculative_tokens(described)
    return HeadConfig("eagle3", tuple(reads), depth, options=eagle3_options(**_flags(described)), **common)


def _of_mtp(described: dict[str, Any], target: Target) -> HeadConfig:
    """Its layer is described by the whole target's configuration."""
    if described.get("num_nextn_predict_layers", 1) != 1:
        raise DrafterError(f"this mtp drafter has {described['num_nextn_predict_layers']} layers, Folio knows one")
    given = described["transformer_layer_config"]
    layer = {key: value for key, value in given.items() if key != "layer_types"} | {"num_hidden_layers": 1}
    about = {"vocab_size": given.get("vocab_size"), "hidden_size": given.get("hidden_size")}
    about["num_layers"] = given.get("num_hidden_layers")
    depth = _speculative_tokens(described)
    return HeadConfig("mtp", (target.num_layers,), depth, _window(layer), layer, target=about)


def _of_raw_eagle3(described: dict[str, Any], target: Target) -> HeadConfig:
    layer = _layer(described)
    vocab, count = described.get("vocab_size", target.vocab_size), described.get("draft_vocab_size", 32000)
    aux = described.get("eagle_config", {}).get("eagle_aux_hidden_state_layer_ids") or _default_reads(target)
    return HeadConfig(
        "eagle3",
        tuple(aux),
        5,
        _window(layer),
        layer,
        draft_vocab=0 if count == vocab else count,
        options=eagle3_options(**_flags(described)),
        target={"vocab_size": vocab, "hidden_size": layer["hidden_size"]},
    )


def _of_raw_dflash(described: dict[str, Any], target: Target) -> HeadConfig:
    inner, layer = described.get("dflash_config", {}), _layer(described) | {"model_type": "qwen3"}
    block = described.get("block_size") or inner.get("block_size")
    if not block or inner.get("target_layer_ids") is None or inner.get("mask_token_id") is None:
        raise DrafterError("this dflash drafter names no block_size, target_layer_ids or mask_token_id")
    return HeadConfig(
        "dflash",
        tuple(int(i) + 1 for i in inner["target_layer_ids"]),
        int(block) - 1,
        _window(layer),
        layer,
        options={"mask_token": int(inner["mask_token_id"])},
        target={"vocab_size": layer.get("vocab_size"), "hidden_size": layer["hidden_size"]},
    )


def _raw(described: dict[str, Any]) -> str | None:
    names = described.get("architectures") or []
    if any("Eagle3" in name for name in names):
        return "eagle3"
    return "dflash" if "dflash_config" in described or "DFlashDraftModel" in names else None


def _layer(described: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the decoder layers, which the raw formats write beside their own keys."""
    layer = {key: value for key, value in described.items() if key not in _BESIDE}
    return {"model_type": "llama", "num_hidden_layers": 1} | layer


def _flags(described: dict[str, Any]) -> dict[str, bool]:
    return {name: bool(described.get(name, False)) for name in eagle3_options()}


def _default_reads(target: Target) -> list[int]:
    """The layers that EAGLE-3 reads where nothing is said."""
    return [2, target.num_layers // 2, target.num_layers - 3]


def _window(layer: dict[str, Any]) -> int:
    return int(layer.get("sliding_window") or _WINDOW)


def _speculative_tokens(described: dict[str, Any]) -> int:
    methods = described.get("speculators_config", {}).get("proposal_methods", [{}])
    return int(methods[0].get("speculative_tokens", 5))
