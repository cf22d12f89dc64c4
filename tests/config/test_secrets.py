"""Secrets: moved from the command line, left out of what is saved and shown."""

import os
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from diffem.cli.compose import public_config
from diffem.config.secrets import (
    PREFIX,
    REDACTED,
    move_secrets_to_env,
    redact_config,
    redact_text,
)
from diffem.runtime.errors import UserError
from diffem.storage.run_dir import config_hash, resumed_arguments, save_config


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment of the test's own."""
    monkeypatch.setattr(os, "environ", {})


def moved() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("+hub.token=a1b2", "a1b2"),
        ("hub.token='a b, c'", "a b, c"),
        ("++hub.token=a{b=c", "a{b=c"),
        ("hub.token=123", "123"),
    ],
)
def test_a_secret_moves_to_the_environment(argument: str, value: str) -> None:
    key = argument.partition("=")[0]
    (left,) = move_secrets_to_env([argument])
    assert left == f"{key}=${{oc.env:DIFFEM_HUB_TOKEN}}"
    assert moved() == {"DIFFEM_HUB_TOKEN": value}
    assert move_secrets_to_env([left]) == [left]  # as a process that this one starts sees it


NAMES = [
    *("api_key", "apiKey", "hf_token", "PASSWORD", "my-secret.value"),
    # Issue 11, A 6, and their siblings
    *("secret_key", "auth", "pwd", "github_pat", "githubPat", "aws_secret_access_key", "db_pass"),
    *("wandb_key", "hf.authorization", "PAT", "bearer", "session_cookie", "authToken"),
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(name: str) -> None:
    assert move_secrets_to_env([f"x.{name}=canary"])[0].startswith(f"x.{name}=${{oc.env:DIFFEM_X_")


@pytest.mark.parametrize("name", NAMES)
def test_a_secret_of_any_name_is_neither_saved_nor_logged(name: str, tmp_path: Path) -> None:
    """Issue 11, A 6: secret_key, auth, pwd and *_pat of a file were saved, and sent to W&B."""
    cfg = OmegaConf.create({"x": {}})
    OmegaConf.update(cfg, f"x.{name}", "canary")
    save_config(cfg, tmp_path / "config.yaml")
    assert "canary" not in (tmp_path / "config.yaml").read_text()
    assert "canary" not in str(public_config(cfg)) and REDACTED in str(public_config(cfg))


@pytest.mark.parametrize(
    "name", ["path", "pattern", "author", "network.tokens", "key", "patch_size", "compass"]
)
def test_names_of_no_secrets(name: str) -> None:
    assert move_secrets_to_env([f"{name}=x"]) == [f"{name}=x"]
    assert redact_config({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "'+hub.token =canary'",
            "+hub.token =canary",
            " +hub.token=canary",
            "+ hub.token=canary",
        ),
        *("hub.token: canary", "+hub.token canary", "hub.token:canary", "--hub.token=canary"),
        *("'hub.token'=canary", '"hub.token" = canary', "hub.token==canary"),
    ],
)
def test_what_is_malformed_does_not_show_a_secret(argument: str) -> None:
    """Issue 11, A 6: `'+hub.token =X'` was refused with X printed."""
    try:
        left = str(move_secrets_to_env([argument]))
    except UserError as error:
        left = str(error)
    assert "canary" not in left and "token" in left.lower()


def test_a_password_in_a_url() -> None:
    url = "mysql://me:canary@host/db"
    assert redact_config({"storage": url}) == {"storage": f"mysql://me:{REDACTED}@host/db"}
    assert "canary" not in redact_text(f"cannot reach {url}")
    with pytest.raises(UserError, match="storage was not saved with the run; give it again"):
        move_secrets_to_env([f"+storage=mysql://me:{REDACTED}@host/db"])


@pytest.mark.parametrize(
    "argument",
    [
        "-m",
        "seed=0,1",
        "network.tokens=16",
        "hub.token=null",
        "hub.token=${oc.env:HOME}",
        "~hub.token",
    ],
)
def test_what_is_no_secret_stays(argument: str) -> None:
    assert move_secrets_to_env([argument]) == [argument] and not moved()


def test_a_secret_that_cannot_be_moved_is_refused_and_not_shown() -> None:
    with pytest.raises(UserError, match=r"hub holds token; .* \+hub\.token=VALUE") as refused:
        move_secrets_to_env(["+hub={name: x, token: canary}"])
    assert "canary" not in str(refused.value)


def test_a_resumed_run_is_given_its_secret_again(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    saved = ["+hub.token=${oc.env:DIFFEM_HUB_TOKEN}", "+b=${oc.env:ABSENT}"]
    OmegaConf.save(saved, tmp_path / ".hydra" / "overrides.yaml")
    resume = f"resume={tmp_path}"
    with pytest.raises(UserError, match=r"hub\.token was not saved with the run; give it again"):
        move_secrets_to_env(resumed_arguments([resume]))
    rest = [f"run_dir={tmp_path}", "resume=auto"]
    given = move_secrets_to_env(resumed_arguments([resume, "+hub.token=canary"]))
    assert given == [saved[1], saved[0], *rest]
    assert move_secrets_to_env(resumed_arguments([resume])) == [
        *saved,
        *rest,
    ]  # from the environment


def test_a_file_s_secrets_are_left_out_and_decide_nothing(tmp_path: Path) -> None:
    def config(token: str) -> DictConfig:
        return DictConfig(
            {"a": {"token": token, "n": 1}, "credentials": [{"user": token}], "b": "${a.n}"}
        )

    plain = OmegaConf.to_container(config("canary"), resolve=False)
    assert redact_config(plain) == {
        "a": {"token": REDACTED, "n": 1}, "credentials": [{"user": REDACTED}], "b": "${a.n}"
    }  # fmt: skip
    save_config(config("canary"), tmp_path / "config.yaml")
    assert OmegaConf.load(tmp_path / "config.yaml") == redact_config(plain)
    assert config_hash(config("canary")) == config_hash(config("another"))
    assert public_config(config("canary"))["b"] == 1 and "canary" not in str(
        public_config(config("canary"))
    )


def test_what_comes_from_the_environment_is_not_shown() -> None:
    os.environ["WHERE"] = "canary"
    cfg = OmegaConf.create(
        {"a": "${oc.env:WHERE}", "b": "${a}", "c": "${oc.decode:${oc.env:WHERE}}"}
    )
    assert "canary" not in str(public_config(cfg))
    assert public_config(cfg)["b"] == "${oc.env:WHERE}"


def test_a_sentence_holds_no_secret_of_the_environment() -> None:
    os.environ |= {"HF_TOKEN": "hf_canary", "A_TOKEN": "user", "HOME": "/home/user"}
    assert redact_text("no user hf_canary in /home/user") == f"no user {REDACTED} in /home/user"


def test_the_current_directory_is_no_password() -> None:
    os.environ |= {"PWD": "/home/user/work", "OLDPWD": "/home/user/work/a"}
    assert redact_text("in /home/user/work/a") == "in /home/user/work/a"
