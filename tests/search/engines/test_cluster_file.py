"""The cluster file that ships: what Ray's launcher makes of it, and that its commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded = yaml.safe_load((files("search") / "engines" / "cluster.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_ray_takes_it_and_keeps_every_node(config: dict[str, Any]) -> None:
    """By the launcher's own schema and defaults; no node is ever removed for being idle."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"]) > 0
    assert prepared["worker_start_ray_commands"] == config["worker_start_ray_commands"]


def test_a_misspelt_key_is_refused(config: dict[str, Any]) -> None:
    """So that the test above can fail."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(Exception, match="setup_comands"):
        validate_config(prepare_config(config | {"setup_comands": []}))


def test_every_option_of_its_ray_start_exists(config: dict[str, Any]) -> None:
    """Asked of the installed `ray`; all nodes use the one environment that the setup makes."""
    ray = str(Path(sys.executable).parent / "ray")
    known = subprocess.run([ray, "start", "--help"], text=True, capture_output=True, check=True, timeout=120).stdout
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in commands if " start " in command]
    assert len(starts) == 2
    for command in starts:
        options = {word.split("=")[0] for word in shlex.split(command) if word.startswith("--")}
        assert options
        assert all(re.search(rf"{option}\b", known) for option in options), command
    used = {word for command in [*commands, *config["setup_commands"]] for word in command.split() if "/bin/" in word}
    assert {word.rpartition("/bin/")[0] for word in used if word.startswith("~")} == {"~/pgolf"}
