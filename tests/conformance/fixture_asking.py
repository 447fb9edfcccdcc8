"""The tools and the prompt that need something of the client before they can answer.

A tool asks as the connection allows: over the open stream (legacy), or by an answer that says what
is missing (modern, "input_required"). What one round knows of the one before is then in
`requestState`, which the server seals (fixture.py); a tool here reads and writes it in the clear.
Nothing is asked of a client that did not declare that it can be asked.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import mcp_types as types

from tests.conformance.fixture_eras import MODERN
from tests.conformance.fixture_tools import (
    Answer,
    Context,
    lacking,
    offered,
    said,
    text_of,
)

PERSON: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    },
    "required": ["username", "email"],
}
WITH_DEFAULTS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {
            "type": "string",
            "enum": ["active", "inactive", "pending"],
            "default": "active",
        },
        "verified": {"type": "boolean", "default": True},
    },
    "required": [],
}
_PLAIN: Final = {"type": "string", "enum": ["option1", "option2", "option3"]}
_TITLED: Final = [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]
CHOICES: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "untitledSingle": _PLAIN,
        "titledSingle": {"type": "string", "oneOf": _TITLED},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": _PLAIN},
        "titledMulti": {"type": "array", "items": {"anyOf": _TITLED}},
    },
    "required": [],
}
MORE_PROMPT: Final = "test_input_required_result_prompt"


def _string(name: str) -> dict[str, Any]:
    return {"properties": {name: {"type": "string"}}, "required": [name]}


def form(message: str, field: str, kind: str = "string") -> types.ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    params = types.ElicitRequestFormParams(message=message, requested_schema=schema)
    return types.ElicitRequest(params=params)


def model(question: str, max_tokens: int = 100) -> types.CreateMessageRequest:
    asked = types.SamplingMessage(role="user", content=types.TextContent(text=question))
    params = types.CreateMessageRequestParams(messages=[asked], max_tokens=max_tokens)
    return types.CreateMessageRequest(params=params)


CAPABILITIES: Final = {
    types.ElicitRequest: "elicitation",
    types.CreateMessageRequest: "sampling",
    types.ListRootsRequest: "roots",
}
NAME: Final = {"user_name": form("What is your name?", "name")}


def declared(context: Context) -> set[str]:
    told = context.session.client_capabilities
    return {name for name in CAPABILITIES.values() if told and getattr(told, name) is not None}


def needed(
    context: Context, requests: Mapping[str, types.InputRequest], state: str | None = None
) -> types.InputRequiredResult:
    for request in requests.values():
        if CAPABILITIES[type(request)] not in declared(context):
            raise lacking(CAPABILITIES[type(request)])
    return types.InputRequiredResult(input_requests=dict(requests), request_state=state)


def answers(params: types.InputResponseRequestParams, *names: str) -> list[Any] | None:
    """What the client answered under these names; None where one is missing."""
    given = params.input_responses or {}
    return [given[name] for name in names] if given.keys() >= set(names) else None


def _accepted(answer: Any, field: str) -> str:
    assert isinstance(answer, types.ElicitResult)
    return str((answer.content or {}).get(field, answer.action))


# --- asked in either era -----------------------------------------------------------------------


async def asked(
    context: Context, params: types.CallToolRequestParams, request: types.InputRequest
) -> Any:
    """The client's answer; or, in the newer era, the answer that says what is asked."""
    if CAPABILITIES[type(request)] not in declared(context):
        raise lacking(CAPABILITIES[type(request)])
    if context.protocol_version in MODERN:
        match answers(params, "only"):
            case [answer]:
                return answer
            case _:
                return needed(context, {"only": request})
    session, of = context.session, context.request_id
    if isinstance(request, types.ElicitRequest):
        form = request.params
        assert isinstance(form, types.ElicitRequestFormParams)
        return await session.elicit_form(form.message, form.requested_schema, of)
    assert isinstance(request, types.CreateMessageRequest)
    return await session.create_message(
        request.params.messages, max_tokens=request.params.max_tokens, related_request_id=of
    )


@offered("test_sampling", "Asks the client's model.", _string("prompt"))
async def sampling(context: Context, params: types.CallToolRequestParams) -> Answer:
    answer = await asked(context, params, model(text_of(params, "prompt")))
    if isinstance(answer, types.InputRequiredResult):
        return answer
    return said(f"LLM response: {getattr(answer.content, 'text', '')}")


async def _elicited(
    context: Context,
    params: types.CallToolRequestParams,
    schema: dict[str, Any],
    message: str = "Check these.",
    before: str = "Elicitation completed: ",
) -> Answer:
    form = types.ElicitRequestFormParams(message=message, requested_schema=schema)
    answer = await asked(context, params, types.ElicitRequest(params=form))
    if isinstance(answer, types.InputRequiredResult):
        return answer
    return said(f"{before}action={answer.action}, content={json.dumps(answer.content)}")


@offered("test_elicitation", "Asks the user for name and address.", _string("message"))
async def elicitation(context: Context, params: types.CallToolRequestParams) -> Answer:
    return await _elicited(context, params, PERSON, text_of(params, "message"), "User response: ")


@offered("test_elicitation_sep1034_defaults", "Asks the user, with defaults of each type.")
async def elicitation_defaults(context: Context, params: types.CallToolRequestParams) -> Answer:
    return await _elicited(context, params, WITH_DEFAULTS)


@offered("test_elicitation_sep1330_enums", "Asks the user to choose, in each form of a choice.")
async def elicitation_enums(context: Context, params: types.CallToolRequestParams) -> Answer:
    return await _elicited(context, params, CHOICES)


# --- asked in the newer era --------------------------------------------------------------------


@offered("test_input_required_result_elicitation", "Needs a name from the user.")
async def one_form(context: Context, params: types.CallToolRequestParams) -> Answer:
    match answers(params, "user_name"):
        case [types.ElicitResult() as name]:
            return said(f"Hello, {_accepted(name, 'name')}!")
        case _:
            return needed(context, NAME)


def _asking_once(
    name: str, description: str, request: types.InputRequest, told: Callable[[Any], str]
) -> None:
    """A tool that needs one thing, without a state."""

    async def run(context: Context, params: types.CallToolRequestParams) -> Answer:
        match answers(params, "only"):
            case [answer]:
                return said(told(answer))
            case _:
                return needed(context, {"only": request})

    offered(name, description)(run)


_asking_once(
    "test_input_required_result_sampling",
    "Needs an answer of the client's model.",
    model("What is the capital of France?"),
    lambda answer: f"The model says: {getattr(answer.content, 'text', '')}",
)
_asking_once(
    "test_input_required_result_list_roots",
    "Needs the client's roots.",
    types.ListRootsRequest(),
    lambda answer: f"Roots: {', '.join(str(root.uri) for root in answer.roots)}",
)


@offered(
    "test_streaming_elicitation", "Would like a word of the user, and never asks on the stream."
)
async def a_word(context: Context, params: types.CallToolRequestParams) -> Answer:
    if "elicitation" not in declared(context):
        return said("There is nobody to ask.")
    match answers(params, "word"):
        case [word]:
            return said(f"The word is {_accepted(word, 'word')}.")
        case _:
            return needed(context, {"word": form("Say a word.", "word")})


def _confirming(name: str, description: str) -> None:
    """A tool that goes on where its own state comes back with the answer."""

    async def run(context: Context, params: types.CallToolRequestParams) -> Answer:
        if params.request_state == "asked" and answers(params, "confirm"):
            return said("state-ok")
        return needed(context, {"confirm": form("Please confirm", "ok", "boolean")}, "asked")

    offered(name, description)(run)


_confirming("test_input_required_result_request_state", "Remembers that it has asked.")
_confirming("test_input_required_result_tampered_state", "Refuses a state that is not its own.")


@offered("test_input_required_result_multiple_inputs", "Needs a name, a greeting and the roots.")
async def several(context: Context, params: types.CallToolRequestParams) -> Answer:
    if params.request_state == "several" and answers(params, "user_name", "greeting", "roots"):
        return said("All three have come.")
    requests: dict[str, types.InputRequest] = {
        **NAME,
        "greeting": model("Generate a greeting", 50),
        "roots": types.ListRootsRequest(),
    }
    return needed(context, requests, "several")


@offered("test_input_required_result_multi_round", "Needs a name, and then a colour.")
async def rounds(context: Context, params: types.CallToolRequestParams) -> Answer:
    state = params.request_state or ""
    if state.startswith("name:"):
        match answers(params, "step2"):
            case [colour]:
                return said(f"{state.removeprefix('name:')} likes {_accepted(colour, 'color')}.")
            case _:
                return needed(context, _colour(), state)
    match answers(params, "step1") if state == "step1" else None:
        case [name]:
            return needed(context, _colour(), f"name:{_accepted(name, 'name')}")
        case _:
            step = {"step1": form("Step 1: What is your name?", "name")}
            return needed(context, step, "step1")


def _colour() -> dict[str, types.InputRequest]:
    return {"step2": form("Step 2: What is your favorite color?", "color")}


@offered("test_input_required_result_capabilities", "Needs whatever this client can give.")
async def what_it_can(context: Context, params: types.CallToolRequestParams) -> Answer:
    every: dict[str, types.InputRequest] = {
        "name": form("What is your name?", "name"),
        "greeting": model("Generate a greeting", 50),
        "roots": types.ListRootsRequest(),
    }
    able = {
        key: request
        for key, request in every.items()
        if CAPABILITIES[type(request)] in declared(context)
    }
    if not able or answers(params, *able):
        return said(f"Asked for {', '.join(able) or 'nothing'}.")
    return needed(context, able)


@offered("test_missing_capability", "Works for clients that have a model, and for no other.")
async def with_a_model(context: Context, params: types.CallToolRequestParams) -> Answer:
    if "sampling" not in declared(context):
        raise lacking("sampling")
    return said("This client has a model.")


def prompt_in_context(
    context: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    """The prompt that needs to know its context first."""
    match answers(params, "user_context"):
        case [known]:
            text = types.TextContent(text=f"In this context: {_accepted(known, 'context')}")
            return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=text)])
        case _:
            asked = form("What context should the prompt use?", "context")
            return needed(context, {"user_context": asked})
