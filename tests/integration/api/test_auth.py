"""Signing up, logging in, refreshing, logging out."""

from uuid import uuid4

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
