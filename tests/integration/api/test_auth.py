"""Signing up, logging in, refreshing, logging out."""

import asyncio
import time
from uuid import uuid4

from schemas.events.identity import TokenFamilyRevoked
from tests.integration.api.running import PASSWORD, Person, Visit


def signup_body() -> dict[str, str]:
    name = f"eve-{uuid4().hex[:10]}"
    return {"username": name, "email": f"{name}@example.org", "password": PASSWORD}


async def test_me_is_who_signed_up(ada: Person) -> None:
    me = (await ada.get("/users/me")).json()
    assert me["id"] == ada.user_id
    assert me["username"] == ada.username
    assert me["email"] == f"{ada.username}@example.org"
    assert me["organization_id"] == ada.organization_id
    assert "jobs:write" in me["scopes"]


async def test_personal_fields_stand_nowhere_in_the_log(ada: Person, visit: Visit) -> None:
    states = b"".join(row.state for row in visit.service.parts.log.read_all(0, 1000))
    assert ada.user_id.encode() in states
    assert ada.username.encode() not in states
    assert PASSWORD.encode() not in states


async def test_login_by_name_and_by_address(ada: Person, visit: Visit) -> None:
    stranger = await visit.client()
    for name in (ada.username, f"{ada.username}@example.org"):
        answer = await stranger.post("/api/v1/auth/login", json={"username": name, "password": PASSWORD})
        assert answer.status_code == 200
        assert answer.json()["user_id"] == ada.user_id
        assert answer.json()["token_type"] == "bearer"
        assert answer.headers["cache-control"] == "no-store"
        assert int(answer.headers["x-event-position"]) > 0


async def test_a_person_reads_what_became_of_their_sessions_and_nobody_else_does(
    visit: Visit, bob: Person
) -> None:
    ada = await visit.sign_up()
    stranger = await visit.client()
    credentials = {"username": ada.username, "password": PASSWORD}
    opened = (await stranger.post("/api/v1/auth/login", json=credentials)).json()
    spent = {"refresh_token": opened["refresh_token"]}
    for status in (200, 401):
        assert (await stranger.post("/api/v1/auth/refresh", json=spent)).status_code == status
    asked = {"stream_id": ada.user_id}
    mine = (await ada.get("/events", params=asked)).json()["data"]
    assert [event["type"].split(".")[-2] for event in mine] == [
        "registered",
        "logged_in",
        "token_family_revoked",
    ]
    last = f"/events/{mine[-1]['id']}"
    assert (await ada.get(last)).json() == mine[-1]
    assert (await bob.get("/events", params=asked)).json()["data"] == []
    assert (await bob.get(last)).status_code == 404
    # Nor in what the organization's members read, of which there may be more.
    everybodys = (await ada.get("/events", params={"limit": 200})).json()["data"]
    assert ada.user_id not in {event["subject"] for event in everybodys}


async def test_wrong_credentials_do_not_say_which_is_wrong(ada: Person, visit: Visit) -> None:
    stranger = await visit.client()
    answers = [
        await stranger.post("/api/v1/auth/login", json={"username": name, "password": "not the password"})
        for name in (ada.username, "nobody-at-all")
    ]
    assert [answer.status_code for answer in answers] == [401, 401]
    first, second = ({**answer.json(), "request_id": ""} for answer in answers)
    assert first == second
    assert first["code"] == "wrong_credentials"
    assert answers[0].headers["www-authenticate"] == "Bearer"


async def test_a_refresh_token_works_once(visit: Visit) -> None:
    stranger = await visit.client()
    tokens = (await stranger.post("/api/v1/auth/signup", json=signup_body())).json()
    spent = {"refresh_token": tokens["refresh_token"]}
    fresh = await stranger.post("/api/v1/auth/refresh", json=spent)
    assert fresh.status_code == 200
    assert (
        await (await visit.client(fresh.json()["access_token"])).get("/api/v1/users/me")
    ).status_code == 200
    again = await stranger.post("/api/v1/auth/refresh", json=spent)
    assert (again.status_code, again.json()["code"]) == (401, "token_invalid")
    # The second use voided the whole family.
    descendant = {"refresh_token": fresh.json()["refresh_token"]}
    assert (await stranger.post("/api/v1/auth/refresh", json=descendant)).status_code == 401


async def test_of_two_uses_at_once_one_wins_and_the_session_ends(visit: Visit) -> None:
    """Whoever copied a token and its owner refresh in the same moment: neither keeps the session."""
    stranger = await visit.client()
    tokens = (await stranger.post("/api/v1/auth/signup", json=signup_body())).json()
    spent = {"refresh_token": tokens["refresh_token"]}
    answers = await asyncio.gather(*(stranger.post("/api/v1/auth/refresh", json=spent) for _ in range(6)))
    fresh = [answer for answer in answers if answer.status_code == 200]
    assert len(fresh) == 1
    assert {answer.status_code for answer in answers} == {200, 401}
    descendant = {"refresh_token": fresh[0].json()["refresh_token"]}
    assert (await stranger.post("/api/v1/auth/refresh", json=descendant)).status_code == 401
    assert set(reasons(visit, tokens)) == {"reuse_detected"}


async def test_the_end_of_a_session_is_an_event_and_no_token_is_in_it(visit: Visit) -> None:
    stranger = await visit.client()
    tokens = (await stranger.post("/api/v1/auth/signup", json=signup_body())).json()
    await stranger.post("/api/v1/auth/logout", json={"refresh_token": tokens["refresh_token"]})
    assert reasons(visit, tokens) == ["logout"]
    states = b"".join(row.state for row in visit.service.parts.log.read_all(0, 10_000))
    for secret in (tokens["refresh_token"], tokens["access_token"]):
        assert secret.encode() not in states


async def test_a_log_out_elsewhere_leaves_other_sessions_alone(visit: Visit) -> None:
    stranger, body = await visit.client(), signup_body()
    here = (await stranger.post("/api/v1/auth/signup", json=body)).json()
    login = {"username": body["username"], "password": PASSWORD}
    there = (await stranger.post("/api/v1/auth/login", json=login)).json()
    await stranger.post("/api/v1/auth/logout", json={"refresh_token": there["refresh_token"]})
    answer = await stranger.post("/api/v1/auth/refresh", json={"refresh_token": here["refresh_token"]})
    assert answer.status_code == 200


async def test_an_unknown_name_takes_as_long_as_a_wrong_password(ada: Person, visit: Visit) -> None:
    """By the processor time of a hash, which dwarfs everything else; the fastest of each is compared."""
    stranger = await visit.client()

    async def fastest(name: str) -> float:
        taken = []
        for _ in range(4):
            begun = time.perf_counter()
            await stranger.post("/api/v1/auth/login", json={"username": name, "password": "not the password"})
            taken.append(time.perf_counter() - begun)
        return min(taken)

    known, unknown = await fastest(ada.username), await fastest("nobody-at-all")
    assert 1 / 4 < known / unknown < 4


def reasons(visit: Visit, tokens: dict[str, str]) -> list[str]:
    """Why this person's sessions ended, as the log says."""
    stream = visit.service.parts.log.read_stream(tokens["user_id"])
    return [each.event.reason for each in stream if isinstance(each.event, TokenFamilyRevoked)]


async def test_logout_voids_the_session(visit: Visit) -> None:
    stranger = await visit.client()
    tokens = (await stranger.post("/api/v1/auth/signup", json=signup_body())).json()
    body = {"refresh_token": tokens["refresh_token"]}
    assert (await stranger.post("/api/v1/auth/logout", json=body)).status_code == 204
    assert (await stranger.post("/api/v1/auth/logout", json=body)).status_code == 204
    assert (await stranger.post("/api/v1/auth/refresh", json=body)).status_code == 401


async def test_names_and_addresses_are_taken_once(ada: Person, visit: Visit) -> None:
    stranger = await visit.client()
    body = {"username": ada.username.upper(), "email": "other@example.org", "password": PASSWORD}
    answer = await stranger.post("/api/v1/auth/signup", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "username_taken")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/username"]
    body = signup_body() | {"email": f"{ada.username}@example.org"}
    answer = await stranger.post("/api/v1/auth/signup", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "email_taken")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/email"]


async def test_an_obvious_password_is_refused(visit: Visit) -> None:
    stranger, body = await visit.client(), signup_body()
    for password in (body["username"], body["email"], "aaaaaaaaaaaa"):
        answer = await stranger.post("/api/v1/auth/signup", json=body | {"password": password})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/password"]
        assert password not in answer.text


async def test_a_repeated_signup_does_not_show_the_tokens_again(visit: Visit) -> None:
    stranger, body, key = await visit.client(), signup_body(), {"Idempotency-Key": uuid4().hex}
    assert (await stranger.post("/api/v1/auth/signup", json=body, headers=key)).status_code == 201
    again = await stranger.post("/api/v1/auth/signup", json=body, headers=key)
    assert (again.status_code, again.json()["code"]) == (409, "secret_already_issued")


async def test_a_bad_signup_is_not_echoed(visit: Visit) -> None:
    stranger = await visit.client()
    body = signup_body() | {"password": "tooshort!", "nickname": "x"}
    answer = await stranger.post("/api/v1/auth/signup", json=body)
    assert answer.status_code == 422
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/password", "/nickname"}
    assert "tooshort!" not in answer.text
