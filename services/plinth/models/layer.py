"""One layer of the transformer: attention, then an MLP, each added to the residual stream.

Which parts there are, and what they are called in a checkpoint, is told by config and names.
Legend: n rows, d width, h heads, k KV heads, e head width, i width within the MLP.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from plinth.kernels.backend import Backend, LinearWeights
from plinth.kernels.specs import AttentionSpec, StateSpec
from plinth.models import mixture
from plinth.models.config import LayerKind, ModelConfig
from plinth.models.families.names import Names
from plinth.models.layers import Linear, Norm, RopeTables
from plinth.models.limits import shown
from plinth.models.mixture import Map, Mixture
from plinth.shared.errors import InvalidArgument


def placed(root: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the submodule of that dotted name, with plain modules between."""
    *path, last = name.split(".")
    for part in path:
        inner = root._modules.get(part)
        if inner is None:
            inner = nn.Module()
            root.add_module(part, inner)
        root = inner
    root.add_module(last, module)


class Layer(nn.Module):
    """Norms before or after, attention with or without rotary positions, a gated or plain MLP or a
    mixture of experts."""

    def __init__(self, config: ModelConfig, names: Names, number: int, kind: LayerKind) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        self.fused_by_heads = names.fused_rows == "heads"
        state = StateSpec(config.kv_heads, config.head_dim, kind.window)
        self.spec = AttentionSpec(number, state, config.scale, config.attention_cap)
        made = _parts(config, kind, names)
        self._norms = {part: module for part, module in made.items() if isinstance(module, Norm)}
        self._maps: dict[str, Linear | Map] = {
            part: module for part, module in made.items() if isinstance(module, Linear | Map)
        }
        self._mixture = Mixture.of(config) if kind.experts else None
        self.residual_maps = [names.parts[part] for part in ("o", "down") if part in made]
        for part, name in names.parts.items():
            if part in made:
                placed(self, name, made[part])
            elif self._mixture is not None:
                for full_name, module in self._mixture.named(part, name):
                    placed(self, full_name, module)
                    if part == "expert_down":
                        self.residual_maps.append(full_name)
        # As tuples, which a step looks up without a hash, and in which a module gets no second
        # name: maps that share an input are one pass.
        self._qkv = tuple(self._maps[part] for part in ("qkv", "q", "k", "v") if part in made)
        self._wide = tuple(self._maps[part] for part in ("gate_up", "gate", "up") if part in made)
        self._back = tuple(self._maps[part] for part in ("o", "down") if part in made)

    def forward(
        self,
        x_nd: Tensor,
        positions_n: Tensor,
        ropes: nn.ModuleList,
        backend: Backend,
        rows_m: Tensor | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> Tensor:
        """Every row is attended to; what leaves are those in `rows_m`, if it is given.

        router_logits: a list that takes those of the rows that leave, [n, experts].
        """
        norms, back = self._norms, self._back
        h_nd = self._normed(x_nd, "before_attention", backend)
        mixed_nd = self._attend(h_nd, positions_n, ropes, backend)
        if rows_m is not None:
            mixed_nd, x_nd = mixed_nd.index_select(0, rows_m), x_nd.index_select(0, rows_m)
        if self.config.parallel:
            wide_ni = self._widened(backend.norm(x_nd, norms["before_mlp"]), backend)
            x_nd = backend.linear_add(mixed_nd, back[0], x_nd)
            return backend.linear_add(wide_ni, back[1], x_nd)
        x_nd = self._add(mixed_nd, back[0], "after_attention", x_nd, backend)
        h_nd = self._normed(x_nd, "before_mlp", backend)
        if self._mixture is not None:
            (logits_nc,) = backend.linear(h_nd, self._mixture.router)
            if router_logits is not None:
                router_logits.append(logits_nc)
            made_nd = backend.mixture(h_nd, logits_nc, self._mixture)
            return x_nd + self._normed(made_nd, "after_mlp", backend)
        wide_ni = self._widened(h_nd, backend)
        return self._add(wide_ni, back[1], "after_mlp", x_nd, backend)

    def _normed(self, x_nd: Tensor, part: str, backend: Backend) -> Tensor:
        norm = self._norms.get(part)
        return x_nd if norm is None else backend.norm(x_nd, norm)

    def _add(
        self, x_ni: Tensor, linear: LinearWeights, part: str, residual_nd: Tensor, backend: Backend
    ) -> Tensor:
        """residual + linear(x), which is normed and scaled first where there is something to."""
        if part not in self._norms and self.config.residual_scale == 1.0:
            return backend.linear_add(x_ni, linear, residual_nd)
        made_nd = self._normed(backend.linear(x_ni, linear)[0], part, backend)
        if self.config.residual_scale != 1.0:
            made_nd = made_nd * self.config.residual_scale
        return residual_nd + made_nd

    def _attend(
        self, h_nd: Tensor, positions_n: Tensor, ropes: nn.ModuleList, backend: Backend
    ) -> Tensor:
        """What the heads mix, [n, h * e]."""
        q_nhe, k_nke, v_nke = self._heads(h_nd, backend)
        if self.kind.rope is not None:
            tables = ropes[self.kind.rope]
            assert isinstance(tables, RopeTables)
            q_nhe, k_nke = backend.rope(q_nhe, k_nke, positions_n, tables.cos_pe, tables.sin_pe)
        return backend.mix(self.spec, q_nhe, k_nke, v_nke)

    def _heads(self, h_nd: Tensor, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [n, h, e], keys and values [n, k, e]."""
        config, n = self.config, h_nd.shape[0]
        h, k, e = config.heads, config.kv_heads, config.head_dim
        made = backend.linear(h_nd, *self._qkv)
        if len(made) == 3:
            q, key, v = made
        elif self.fused_by_heads:
            q, key, v = (part.contiguous() for part in made[0].view(n, h, 3, e).unbind(2))
        else:
            q, key, v = torch.split(made[0], [h * e, k * e, k * e], dim=1)
        if config.qk_norm == "projection":
            q, key = (
                backend.norm(q, self._norms["q_norm"]),
                backend.norm(key, self._norms["k_norm"]),
            )
        q, key, v = q.view(n, h, e), key.view(n, k, e), v.view(n, k, e)
        if config.qk_norm == "head":
            q = backend.norm(q.reshape(n * h, e), self._norms["q_norm"]).view(n, h, e)
            key = backend.norm(key.reshape(n * k, e), self._norms["k_norm"]).view(n, k, e)
        return q, key, v

    def _widened(self, h_nd: Tensor, backend: Backend) -> Tensor:
        """act(gate) * up, or act(up), [n, i]."""
        made, activation = backend.linear(h_nd, *self._wide), self.config.activation
        if not self.config.gated:
            return backend.activate(activation, made[0])
        gate_ni, up_ni = made if len(made) == 2 else made[0].chunk(2, dim=1)
        return backend.gate(activation, gate_ni, up_ni)


def _parts(config: ModelConfig, kind: LayerKind, names: Names) -> dict[str, nn.Module]:
    """The modules of a layer by part. InvalidArgument for one that the family has no name for."""
    d, e, bias = config.hidden, config.head_dim, config.biases
    queries, keys = config.heads * e, config.kv_heads * e
    there = names.parts
    made: dict[str, nn.Module] = {}
    if "qkv" in there:
        made["qkv"] = Linear(d, queries + 2 * keys, bias.q)
    else:
        made["q"] = Linear(d, queries, bias.q)
        made["k"] = Linear(d, keys, bias.k)
        made["v"] = Linear(d, keys, bias.v)
    made["o"] = Linear(queries, d, bias.o)
    if not kind.experts:
        made |= _mlp(config, names)
    places = {"before": ("before",), "after": ("after",), "both": ("before", "after")}
    for place in places[config.norms]:
        made[f"{place}_attention"] = Norm.of(config, d)
        made[f"{place}_mlp"] = Norm.of(config, d)
    if config.qk_norm != "none":
        whole = config.qk_norm == "projection"
        made["q_norm"] = Norm.of(config, queries if whole else e)
        made["k_norm"] = Norm.of(config, keys if whole else e)
    _check_names(config, names, [*made, *(mixture.PARTS if kind.experts else ())])
    return made


# Field of ModelConfig that asks for a part which not every family has.
_ASKED_BY = {
    **dict.fromkeys(("gate", "up"), "gated"),
    **dict.fromkeys(("q_norm", "k_norm"), "qk_norm"),
    **dict.fromkeys(("before_attention", "before_mlp", "after_attention", "after_mlp"), "norms"),
    **dict.fromkeys(mixture.PARTS, "experts"),
}


def _check_names(config: ModelConfig, names: Names, made: Collection[str]) -> None:
    """InvalidArgument for what the family has no tensors for."""
    for part in made:
        if part not in names.parts:
            field = _ASKED_BY.get(part, "family")
            raise InvalidArgument(
                f"model config: {field} is {shown(getattr(config, field))}, for which the layers "
                f"of {config.family!r} lack {part!r}",
                field=field,
            )
    if names.fused_rows == "heads" and config.kv_heads != config.heads:
        raise InvalidArgument(
            f"model config: kv_heads is {config.kv_heads}, must be the {config.heads} heads: "
            f"{config.family!r} keeps each head's query, key and value together",
            field="kv_heads",
        )


def _mlp(config: ModelConfig, names: Names) -> dict[str, nn.Module]:
    """A plain layer's; where others have experts, of maps that take no adapter (see `mixture`)."""
    d, i, bias = config.hidden, config.intermediate, config.biases.mlp
    if "router" in names.parts:
        return {"gate": Map(d, i), "up": Map(d, i), "down": Map(i, d)}
    made: dict[str, nn.Module] = {}
    if config.gated and "gate_up" in names.parts:
        made["gate_up"] = Linear(d, 2 * i, bias)
    else:
        made |= {"gate": Linear(d, i, bias)} if config.gated else {}
        made["up"] = Linear(d, i, bias)
    return made | {"down": Linear(i, d, bias)}
