"""`pgolf size`: what a configuration's artifact will weigh, before anything is trained and without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from search.commands import options
from search.commands.tables import print_json

if TYPE_CHECKING:
    from space.forecast.speed import SpeedEstimate

CAP_BYTES = 16_000_000  # the challenge's, decimal


@click.command()
@click.argument("config", metavar="PRESET|CONFIG.toml")
@options.hardware
@options.as_json
def size(config: str, hardware: str | None, as_json: bool) -> None:
    """Predict an artifact's bytes before training: code plus compressed weights, with a 90 % interval.

    With --hardware also what the run takes there: steps, seconds, memory, dollars.

    CONFIG.toml has tables [model] [train] [quant] [eval] [budget] and may start from a preset: preset = "tiny".

    \b
    Example:
      pgolf size baseline_2026_03_17
      pgolf size frontier_2026_04_27 --hardware 8xh100
    """
    from search.bundle.script import code_bytes
    from space.forecast.hardware import load_hardware
    from space.forecast.sizing import estimate_model_bytes
    from space.forecast.speed import estimate_speed
    from space.presets import load_config

    run = load_config(config)
    speed = None
    if hardware:
        machine, ranks = load_hardware(hardware)
        speed = estimate_speed(run, machine, ranks=ranks)
    code = code_bytes(run)
    estimate = estimate_model_bytes(run, code_bytes=code)
    facts: dict[str, object] = {
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
    if speed:
        facts["speed"] = speed
    if as_json:
        print_json(facts)
        return
    low, high = estimate.low + code, estimate.high + code
    click.echo(f"{config}: {estimate.num_params:,} parameters, {estimate.bits_per_param:.2f} bits each when packed")
    for role, count in estimate.by_role.items():
        click.echo(f"  {role:<14} {count:>12,} bytes")
    click.echo(f"  {'model_bytes':<14} {estimate.model_bytes:>12,}")
    click.echo(f"  {'code_bytes':<14} {code:>12,}")
    click.echo(f"  {'artifact_bytes':<14} {estimate.model_bytes + code:>12,}   90 %: {low:,} to {high:,}")
    click.echo(f"  {verdict(low, high)} the challenge's {CAP_BYTES:,}")
    if speed:
        click.echo(describe_speed(speed))


def describe_speed(speed: SpeedEstimate) -> str:
    """A forecast in four lines."""
    memory = {True: "fits", False: "does not fit", None: "may or may not fit"}[speed.fits_memory]
    low, high = 1e3 * speed.step_seconds_low, 1e3 * speed.step_seconds_high
    return (
        f"on {speed.ranks} x {speed.hardware}:\n"
        f"  {'step':<14} {1e3 * speed.step_seconds:>12.1f} ms   90 %: {low:.1f} to {high:.1f}\n"
        f"  {'steps':<14} {speed.steps:>12,}   90 %: {speed.steps_low:,} to {speed.steps_high:,}; "
        f"{speed.tokens / 1e6:,.1f} M tokens in {speed.train_seconds:,.0f} s\n"
        f"  {'peak memory':<14} {speed.peak_memory_bytes / 2**20:>12,.0f} MiB a rank, {memory} in "
        f"{speed.memory_bytes / 2**20:,.0f}\n"
        f"  {'whole run':<14} {speed.total_seconds:>12,.0f} s, of it {speed.eval_seconds:,.0f} s per scoring; "
        f"${speed.dollars:,.2f}"
    )


def verdict(low: int, high: int, cap: int = CAP_BYTES) -> str:
    """How an interval of artifact bytes lies to a cap."""
    if high <= cap:
        return f"fits, {cap - high:,} to spare at the upper end, in"
    return f"is {low - cap:,} too large at the lower end for" if low > cap else "may or may not fit in"
