"""Credential providers as real programs: what they are told, as whom they run, what is remembered of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fuse.credentials.given import Given, ServiceAccount, Token
from fuse.credentials.providers import Providers
from fuse.errors import Cancelled, InvalidConfig, Unavailable
from fuse.registry.access import Credential
from tests.conftest import need
from tests.support.provider import Programs
from tests.support.waiting import until

IMAGE = "registry.io:5000/team/m"
READER = ServiceAccount("default", "reader")
STATIC = {"registry.io:5000": {"username": "node", "password": "np"}}


def pod(
    token: str = "reader|pw",
    account: ServiceAccount = READER,
    *,
    uid: str = "u1",
    of: ServiceAccount | None = None,
    left_s: float = 600,
) -> Given:
    """`of`: whom the token names, if not the account."""
    named = Token(text=token, expires_at=time.time() + left_s, account=of or account, account_uid=uid)
    return Given(account=account, tokens={"registry": named})


class Asking:
    """Asks, and keeps the notes."""

    def __init__(self, programs: Programs, **settings: object) -> None:
        self.providers = Providers(programs.config, programs.bin, **settings)  # type: ignore[arg-type]
        self.notes: list[str] = []

    def by_pod(self, given: Given, image: str = IMAGE, *, fresh: bool = False) -> Credential | None:
        return self._find(image, given, of_pods=True, fresh=fresh)

    def by_node(self, image: str = IMAGE, given: Given = Given(), *, fresh: bool = False) -> Credential | None:  # noqa: B008
        return self._find(image, given, of_pods=False, fresh=fresh)

    def _find(self, image: str, given: Given, *, of_pods: bool, fresh: bool) -> Credential | None:
        found = self.providers.find(
            image, given, self.notes.append, of_pods=of_pods, cancel=threading.Event(), fresh=fresh
        )
        return found.credential if found is not None else None


def test_a_provider_is_told_of_image_and_token(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """In kubelet's words; it gets its arguments, its environment and little else, and runs as nobody we know."""
    need(os.geteuid() == 0, "only root can become somebody else")
    monkeypatch.setenv("OURS", "nobody else's business")
    programs.install("exchange", match="*.io:5000", audience="registry", env={"REGION": "here"})

    assert Credential(username="reader", password="pw") == Asking(programs).by_pod(pod())

    (ran,) = programs.runs()
    assert {
        "kind": "CredentialProviderRequest",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "image": IMAGE,
    } == ran["request"]
    assert (["get"], 65532, []) == (ran["arguments"], ran["uid"], ran["gids"])
    assert "here" == ran["environment"]["REGION"]
    assert "OURS" not in ran["environment"]


def test_the_two_kinds_are_kept_apart(programs: Programs) -> None:
    """Who wants a token is none of the node's, and who wants none is none of the pod's."""
    programs.install("node-only", match="registry.io:5000", auth=STATIC)
    asking = Asking(programs)
    assert asking.by_pod(pod()) is None
    assert Credential(username="node", password="np") == asking.by_node()

    programs.install("node-only", match="registry.io:5000", auth=STATIC, audience="registry")
    assert asking.by_node() is None
    assert asking.by_node(given=pod()) is None

    # It may do without a ServiceAccount, but not with one that it has not been shown.
    programs.install("node-only", match="registry.io:5000", auth=STATIC, audience="registry", require_account=False)
    assert Credential(username="node", password="np") == asking.by_node()
    assert asking.by_node(given=Given(account=READER)) is None


def test_who_has_no_usable_token_is_told_what_is_missing(programs: Programs) -> None:
    """No account, no token for this audience, one that has ended."""
    programs.install("exchange", audience="registry", match="*.io:5000")
    asking = Asking(programs)

    assert asking.by_pod(Given()) is None
    assert asking.by_pod(Given(account=READER)) is None
    assert asking.by_pod(pod(left_s=-1)) is None

    assert "ServiceAccount" in asking.notes[0]
    assert "'registry'" in asking.notes[1]
    assert "tokenRequests" in asking.notes[1]
    assert "requiresRepublish" in asking.notes[2]
    assert [] == programs.runs()


def test_required_annotations_are_read_or_the_provider_is_passed_over(programs: Programs) -> None:
    """Without the right to read them, without them, with them; optional ones are no reason."""
    programs.install("exchange", audience="registry", match="*.io:5000", required_annotations=("x.io/role",))
    of: dict[str, Mapping[str, str]] = {"reader": {"x.io/role": "r1", "other": "o"}, "bare": {}}

    def annotations(account: ServiceAccount) -> Mapping[str, str]:
        if account.name not in of:
            raise Unavailable("the API does not answer")
        return of[account.name]

    blind, seeing = Asking(programs), Asking(programs, annotations=annotations)
    assert blind.by_pod(pod()) is None
    assert "x.io/role, which this driver cannot read" in blind.notes[0]
    for name, words in (("bare", "which default/bare does not have"), ("gone", "the API does not answer")):
        assert seeing.by_pod(pod(account=ServiceAccount("default", name))) is None
        assert words in seeing.notes[-1]
    assert seeing.by_pod(pod()) is not None
    assert {"x.io/role": "r1"} == programs.runs()[0]["request"]["serviceAccountAnnotations"]


def test_annotations_that_nobody_wants_are_not_read(programs: Programs) -> None:
    """An API server that is away keeps no pod from credentials that do not need it."""
    programs.install("exchange", audience="registry", match="*.io:5000")

    def annotations(account: ServiceAccount) -> Mapping[str, str]:
        raise Unavailable(f"the API does not answer for {account}")

    assert Asking(programs, annotations=annotations).by_pod(pod()) is not None


@pytest.mark.parametrize(
    ("key", "same", "other"),
    [
        ("Image", IMAGE, "registry.io:5000/team/other"),
        ("Registry", "registry.io:5000/team/other", "other.io:5000/m"),
        ("Global", "other.io:5000/m", None),
    ],
)
def test_an_answer_is_remembered_for_what_it_says(programs: Programs, key: str, same: str, other: str | None) -> None:
    """By image, registry, or for all; asked afresh it is run again."""
    programs.install("plain", match="*.io:5000", key=key, auth={"*.io:5000": {"username": "u", "password": "p"}})
    asking = Asking(programs)

    assert asking.by_node(IMAGE) == asking.by_node(same) is not None
    assert 1 == len(programs.runs())
    if other is not None:
        assert asking.by_node(other) is not None
        assert 2 == len(programs.runs())
    ran = len(programs.runs())
    assert asking.by_node(IMAGE, fresh=True) is not None
    assert ran + 1 == len(programs.runs())


def test_one_that_has_nothing_is_not_asked_again_either(programs: Programs) -> None:
    """An empty answer is an answer; the next provider is asked."""
    programs.install("empty", match="*.io:5000", auth=None)
    programs.install("full", match="registry.io:5000", auth=STATIC)
    asking = Asking(programs)

    for _ in range(2):
        assert Credential(username="node", password="np") == asking.by_node()
    assert 2 == len(programs.runs())


def test_accounts_do_not_share_what_is_remembered(programs: Programs) -> None:
    """By account, and by its uid: one of the same name that was made anew is another. A newer token of it is not."""
    programs.install("exchange", audience="registry", match="*.io:5000", cache_type="ServiceAccount")
    asking = Asking(programs)
    first, second = Credential(username="a", password="1"), Credential(username="b", password="2")

    assert first == asking.by_pod(pod("a|1"))
    assert first == asking.by_pod(pod("b|2"))
    assert second == asking.by_pod(pod("b|2", uid="u2"))
    assert second == asking.by_pod(pod("b|2", account=ServiceAccount("other", "reader")))

    # A token that says nothing of an account gets nothing of what is remembered for one.
    for user in ("c", "d"):
        silent = Token(text=f"{user}|3", expires_at=time.time() + 600)
        found = asking.by_pod(Given(account=READER, tokens={"registry": silent}))
        assert Credential(username=user, password="3") == found

    programs.install("exchange", audience="registry", match="*.io:5000", cache_type="Token")
    assert first == asking.by_pod(pod("a|1"))
    assert second == asking.by_pod(pod("b|2"))


def test_an_account_that_the_token_does_not_name_is_not_believed(programs: Programs) -> None:
    """The author of an inline volume can write attributes: they get nobody what is remembered for somebody else."""
    programs.install("exchange", audience="registry", match="*.io:5000", cache_type="ServiceAccount")
    asking = Asking(programs)
    assert asking.by_pod(pod("victim|1")) is not None

    assert asking.by_pod(pod("thief|2", of=ServiceAccount("default", "thief"))) is None
    assert "is not of default/reader: set CSIDriver.podInfoOnMount" in asking.notes[0]


def test_so_many_answers_are_remembered_and_no_more(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens come and go for as long as a node lives; the oldest answer goes."""
    monkeypatch.setattr("fuse.credentials.providers._MOST_ANSWERS", 2)
    programs.install("exchange", audience="registry", match="*.io:5000")
    asking = Asking(programs)
    for token in ("a|1", "b|2", "c|3"):
        assert asking.by_pod(pod(token)) == asking.by_pod(pod(token)) is not None
    assert 3 == len(programs.runs())
    assert 2 == len(asking.providers._answers)
    assert not any(secret in repr(asking.providers._answers) for secret in ("a|1", "password='", "'2'"))
    asking.by_pod(pod("a|1"))
    assert 4 == len(programs.runs())


def test_how_long_is_said_by_the_answer_or_by_the_file(programs: Programs) -> None:
    """0 is not at all; nothing is what the configuration says."""
    for duration, default, most_runs in (("0s", "1h", 2), (None, "0", 2), (None, "1h", 1), ("1h", "0", 1)):
        programs.install("plain", match="*.io:5000", duration=duration, default_duration=default, auth=STATIC)
        asking, before = Asking(programs), len(programs.runs())
        assert asking.by_node() == asking.by_node() is not None
        assert most_runs == len(programs.runs()) - before, (duration, default)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("sys.exit('canary')", "ended with code 1"),
        ("print('canary'); sys.exit()", "did not answer with a CredentialProviderResponse"),
        ("request['apiVersion'] = 'canary/v9'", "answered in another version of the protocol"),
        ("print('x' * (1 << 21))", "answered with more than 1 MiB"),
        ("import time; time.sleep(60)", "did not answer within 0.5 s"),
    ],
)
def test_a_provider_that_fails_is_passed_over(programs: Programs, more: str, words: str) -> None:
    """The note names it, and holds nothing of what it said; the next one is asked."""
    programs.install("bad", match="*.io:5000", more=more, auth=STATIC)
    programs.install("good", match="registry.io:5000", auth=STATIC)
    asking = Asking(programs, limit_s=0.5)

    assert asking.by_node() is not None
    assert f"credential provider bad {words}" in asking.notes[0]
    assert "canary" not in str(asking.notes)


def test_equal_questions_at_once_are_one_run(programs: Programs) -> None:
    """A hundred pods that start together do not start a hundred programs."""
    programs.install("slow", match="*.io:5000", more="import time; time.sleep(0.3)", duration="0", auth=STATIC)
    asking = Asking(programs)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: asking.by_node(), range(8)))

    assert [Credential(username="node", password="np")] * 8 == found
    assert 1 == len(programs.runs())


def test_who_waits_for_a_run_that_is_given_up_starts_another(programs: Programs, tmp_path: Path) -> None:
    """One pod that goes does not fail the next one."""
    go = programs.root / "go"
    programs.install("slow", match="*.io:5000", more=f"while not os.path.exists({str(go)!r}): pass", auth=STATIC)
    asking = Asking(programs)
    cancel = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            asking.providers.find, IMAGE, Given(), asking.notes.append, of_pods=False, cancel=cancel, fresh=False
        )
        until(programs.runs, "the program runs")
        second = pool.submit(asking.by_node)
        cancel.set()
        with pytest.raises(Cancelled):
            first.result(10)
        go.touch()
        assert second.result(10) is not None


def test_a_changed_file_counts_at_once_and_a_broken_one_not_at_all(programs: Programs) -> None:
    """The last that was understood stays in force."""
    programs.install("plain", match="other.io:5000", auth=STATIC)
    asking = Asking(programs)
    before = asking.providers.marker()
    assert asking.by_node() is None

    programs.install("plain", match="registry.io:5000", auth=STATIC)
    assert before != asking.providers.marker()
    assert asking.by_node() is not None
    programs.config.write_text("{")
    assert asking.by_node(fresh=True) is not None


def test_a_start_finds_what_is_missing(programs: Programs) -> None:
    """The file, and each program."""
    with pytest.raises(InvalidConfig, match=r"providers\.yaml"):
        Providers(programs.config, programs.bin).check()
    programs.install("plain")
    Providers(programs.config, programs.bin).check()
    (programs.bin / "plain").chmod(0o644)
    with pytest.raises(InvalidConfig, match="plain: the credential provider is not there"):
        Providers(programs.config, programs.bin).check()
