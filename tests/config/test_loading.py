"""Configurations from files and ``key=value``, and what is said about wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from ctflow.config import Flag, config_to_yaml, load_config, parse_command, run_command
from ctflow.config.training import TrainConfig
from ctflow.errors import ConfigError, CTFlowError


@dataclass
class Engine:
    """An inner section."""

    power: float = 1.0
    fuels: list[str] = field(default_factory=lambda: ["petrol"])


@dataclass
class Car:
    """A small schema."""

    name: str = "beetle"
    wheels: int = 4
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        if self.wheels < 1:
            raise ValueError(f"wheels must be at least 1, found {self.wheels}")


def test_defaults_then_base_then_file_then_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text("wheels: 3\nengine: {power: 2.0}\n", encoding="utf-8")
    (tmp_path / "below").mkdir()
    file = tmp_path / "below" / "car.yaml"
    file.write_text("base: ../base.yaml\nengine: {power: 5.0}\n", encoding="utf-8")
    assert load_config(Car, file, ["name=a=b", "engine.fuels=[gas,wood]"]) == Car(
        "a=b", 3, Engine(5.0, ["gas", "wood"])
    )


def test_a_written_configuration_comes_back_equal(tmp_path):
    car = Car("t: [1, 2]", 6, Engine(0.25, []))
    (tmp_path / "car.yaml").write_text(config_to_yaml(car), encoding="utf-8")
    assert load_config(Car, tmp_path / "car.yaml") == car


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("engin.power=2", r"unknown key 'engin[\s\S]*did you mean 'engine"),
        ("engine.pover=2", r"unknown key 'engine.pover'[\s\S]*did you mean 'engine.power'"),
        ("wheels=four", "wheels"),
        ("wheels=0", "wheels must be at least 1, found 0"),
        ("wheels", r"argument 'wheels'[\s\S]*Expected: key=value"),
    ],
)
def test_a_wrong_key_or_value_is_named(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(Car, None, [override])


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1\n"])
def test_a_file_that_holds_no_keys_is_named(tmp_path, text):
    (tmp_path / "car.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"car\.yaml"):
        load_config(Car, tmp_path / "car.yaml")
    with pytest.raises(ConfigError, match="no configuration file at"):
        load_config(Car, tmp_path / "none.yaml")


def test_flags_keys_and_a_file_in_any_order(tmp_path):
    (tmp_path / "car.yaml").write_text("wheels: 3\nname: van\n", encoding="utf-8")
    flags = [Flag("--name", "name"), Flag("--dry-run", options={"action": "store_true"})]
    arguments = [
        "engine.power=3",
        "--name",
        'a "quoted": name',
        "--config",
        str(tmp_path / "car.yaml"),
        "wheels=5",
    ]
    line = parse_command(Car, "ctflow car", "Drives.", flags, [*arguments, "--dry-run"])
    assert line.config == Car('a "quoted": name', 5, Engine(3.0))
    assert line.flags == {"dry_run": True}


def test_an_error_for_users_is_text_and_status_two(capsys):
    def main() -> int:
        raise CTFlowError("a bus", "a car", "take the other one")

    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: a bus\nExpected: a car\nWhat to do: take the other one\n"
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: None)
    assert stopped.value.code == 0


@pytest.mark.parametrize(("text", "number"), [("1.0", 1), ("1e3", 1000), ("-2.", -2), ("7", 7)])
def test_whole_numbers_as_people_write_them(tmp_path, text, number):
    path = tmp_path / "c.yaml"
    path.write_text(f"seed: {text}\n", encoding="utf-8")
    assert load_config(TrainConfig, path).seed == number
    flags = [Flag("--seed", "seed", {"type": int})]
    for argv in ([f"seed={text}"], [f"--seed={text}"], ["--config", str(path)]):
        seed = parse_command(TrainConfig, "t", "d", flags, argv).config.seed
        assert seed == number and type(seed) is int


@pytest.mark.parametrize("text", ["1.5", "x", "nan", "1e400"])
def test_other_numbers_are_no_whole_ones(text):
    with pytest.raises(ConfigError):
        load_config(TrainConfig, None, [f"seed={text}"])
