"""Carry learning rates that were tuned at one width to another: muTransfer's rules for our optimizers.

A rule makes the change of activations and scores in one step independent of the width D (Yang and others,
https://arxiv.org/abs/2203.03466; for spectral norms https://arxiv.org/abs/2310.17813). For most weights our model and
optimizers follow it already; only the output head, tied or not, needs a correction:

- Matrices under Muon: the update of an (out, in) matrix has spectral norm rate x sqrt(max(1, out / in)), whatever D,
  and their inputs are normalised. The rate carries over, and decay with it. First weights are uniform in
  +-1 / sqrt(in) or orthogonal: a spectral norm that does not move with D. Output projections begin at zero.
- Queries and keys are normalised and heads keep their size, so attention scores do not move with D. A space that grew
  its heads would have to divide the gain by sqrt(head_dim).
- Gains, scales and mixes under AdamW act on one channel each: their rate carries over.
- The output head under AdamW: every entry moves by the rate, and a score is a sum of D products with entries of size 1
  that the update is aligned with, so scores move by D x rate: the rate falls as 1 / D.
- A token table that is only read goes through a norm: its rate carries over. Tied to the head it takes the head's rule,
  and its first deviation the same factor. The norm makes the input side blind to the scale of the table, so both
  together are exactly a score multiplied by base / D, muTransfer's output multiplier, without code that ships. Its
  decoupled decay is a share of the rate, so the share grows by as much.

Left out: rows of value tables that share the tied table's rate, and dense attention gates, sums over D that are zero at
first, under the scalars' rate.
"""

from __future__ import annotations

from dataclasses import replace

from pgolf_model.config import RunConfig


def at_own_width(config: RunConfig, *, base_dim: int) -> RunConfig:
    """Return `config` with rates and first deviations that were tuned at `base_dim` channels moved to its own width.

    At model_dim == base_dim that is `config` itself.
    """
    factor = base_dim / config.model.model_dim
    if factor == 1.0:
        return config
    recipe = config.train
    if not config.model.tied:
        return replace(config, train=replace(recipe, head_lr=(recipe.head_lr or recipe.embed_lr) * factor))
    return replace(
        config,
        model=replace(config.model, embed_init_std=config.model.embed_init_std * factor),
        train=replace(recipe, embed_lr=recipe.embed_lr * factor, embed_weight_decay=recipe.embed_weight_decay / factor),
    )
