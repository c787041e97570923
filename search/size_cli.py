"""`pgolf size`: what a configuration's artifact will weigh, before anything is trained and without torch."""

from __future__ import annotations

import json

import click

CAP_BYTES = 16_000_000  # the challenge's, decimal


@click.command()
@click.argument("config", metavar="PRESET|CONFIG.toml")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def size(config: str, as_json: bool) -> None:
    """Predict an artifact's bytes before training: code plus compressed weights, with a 90 % interval.

    CONFIG.toml has tables [model] [train] [quant] [eval] [budget] and may start from a preset: preset = "tiny".

    \b
    Example:
      pgolf size baseline_2026_03_17
    """
    from search.bundle import code_bytes
    from space.presets import load_config
    from space.sizing import estimate_model_bytes

    run = load_config(config)
    code = code_bytes(run)
    estimate = estimate_model_bytes(run, code_bytes=code)
    facts = {
        "config": config,
        "num_params": estimate.num_params,
        "model_bytes": estimate.model_bytes,
        "code_bytes": code,
        "artifact_bytes": estimate.model_bytes + code,
        "artifact_bytes_low": estimate.low + code,
        "artifact_bytes_high": estimate.high + code,
        "bits_per_param": round(estimate.bits_per_param, 4),
        "model_bytes_by_role": dict(estimate.by_role),
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    low, high = estimate.low + code, estimate.high + code
    click.echo(f"{config}: {estimate.num_params:,} parameters, {estimate.bits_per_param:.2f} bits each when packed")
    for role, count in estimate.by_role.items():
        click.echo(f"  {role:<14} {count:>12,} bytes")
    click.echo(f"  {'model_bytes':<14} {estimate.model_bytes:>12,}")
    click.echo(f"  {'code_bytes':<14} {code:>12,}")
    click.echo(f"  {'artifact_bytes':<14} {estimate.model_bytes + code:>12,}   90 %: {low:,} to {high:,}")
    click.echo(f"  {verdict(low, high)} the challenge's {CAP_BYTES:,}")


def verdict(low: int, high: int, cap: int = CAP_BYTES) -> str:
    """How an interval of artifact bytes lies to a cap."""
    if high <= cap:
        return f"fits, {cap - high:,} to spare at the upper end, in"
    return f"is {low - cap:,} too large at the lower end for" if low > cap else "may or may not fit in"
