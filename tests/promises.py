"""What the product promises, by name, and the decorator by which a test says which one it shows.

A promise that no test carries fails, and so does a test that carries an unknown one
(tests/unit/test_promises.py). A name is `area:what-holds`.
"""

from typing import Final

import pytest

PROMISES: Final[dict[str, str]] = {
    "agents:revocation-is-told": "Suspending an agent or ending a secret reaches planes at once.",
    "agents:secret-told-once": "An agent's secret is in one answer, and nowhere else.",
    "answers:decided": "What an agent answers to a tool server goes up if it is allowed.",
    "answers:asked-by-grant": "A tool server asks of agents what it is granted, and no more.",
    "api:done-once": "A request repeated under its idempotency key is done once.",
    "api:order-of-refusals": "401 and 403 come before anything is said of a body or a resource.",
    "api:pages-hold-still": "A list read page by page skips and repeats nothing.",
    "api:refusals-are-problems": "Each refusal is a problem document that echoes nothing.",
    "api:two-statements": "A GET costs the database two statements, however much there is.",
    "audit:nobody-rewrites": "No role of a service can change or remove what is recorded.",
    "audit:stored-once": "A record is stored once, whatever is lost, resent or put back.",
    "audit:tampering-named": "A manipulated chain is named by code and first position.",
    "audit:tenants-apart": "Without a tenant a role of audit sees and writes nothing.",
    "clients:others": "Clients of others' making connect with what is printed for them.",
    "clients:stdio": "A client that starts programs is governed like one that dials.",
    "code:broad-handlers": "Only the outermost handlers and the supervisor catch everything.",
    "code:exceptions-explained": "A linter is silenced by rule and with a reason, or not at all.",
    "docs:walk-is-true": "The walk through one call names files that exist.",
    "engine:answers-fail-closed": "What is not a well-formed answer of an engine allows nothing.",
    "engine:judged-alone": "In a batch each call is judged as if it were alone.",
    "engine:parity": "Both engines decide every policy case alike.",
    "engine:sees-what-is-read": "The engine gets the input paths that policies read, no more.",
    "envelope:closed": "An input with a key missing, added or out of bounds is refused.",
    "escalations:bound": "An approval runs the call that it was given for, once, and no other.",
    "escalations:once": "Whoever retries and whatever is killed, an approval runs once at most.",
    "escalations:signed": "Only what people decided and control signed ends a question.",
    "escalations:no-machine": "No machine decides an escalation, nor who asked for the call.",
    "escalations:step-up": "What is severe is approved only right after giving the password.",
    # Rows of the failure table (core.md 11): who is lost, and what holds then.
    "failure:audit": "Without audit or its database calls go on, and their records arrive.",
    "failure:authorizer": "Without an authorizer proxies deny, and go on when it is back.",
    "failure:bad-bundle": "A bundle that cannot be believed is refused; the last good one stays.",
    "failure:clock": "Under a clock that went back approvals are over.",
    "failure:control-expired": "Control silent for too long: each class acts as it says.",
    "failure:control-link": "Without control calls go on, and what waits for people waits.",
    "failure:counter-store": "Without their store counts go on in each process, for its share.",
    "failure:engine": "Without its engine everything that policy decides is denied.",
    "failure:escalation-store": "Without its store nothing that waits runs or is used up.",
    "failure:no-bundle": "Without any bundle everything is denied.",
    "failure:notifier": "Who cannot be told is told later; clocks and people go on.",
    "failure:outbox-disk": "A disk that takes no record lets no call run, until it does.",
    "failure:outbox-full": "Where nothing can be recorded nothing is done.",
    "failure:upstream": "A tool server that fails ends the call with a reason.",
    "imports:contracts-hold": "Services share contracts in protos and nothing else.",
    "imports:violation-caught": "An import that crosses a border is named before it is merged.",
    "intercept:a-person-decides": "What waits for a person runs once after a yes, never without.",
    "notifications:half-time": "Half of the time is told while something waits, and only then.",
    "notifications:no-secret": "A destination's secrets are in its files, and nowhere else.",
    "notifications:people-are-told": "Each kind of destination is told of what waits.",
    "notifications:retried": "A notice is tried again until its receiver is back.",
    "notifications:soon": "A notice is with its receiver within two seconds.",
    "notifications:survive": "A notice outlives the process that should have sent it.",
    "notifications:tested": "Each kind of destination has a test that says what became of it.",
    "limits:the-innocent-go-on": "Who calls too often is told when to come back; others go on.",
    "page:approves-without-script": "A person decides on a plain page, in any browser.",
    "page:nobody-frames-it": "The approval page is in no frame and loads nothing from elsewhere.",
    "people:codes-once": "One-time and recovery codes open one session, and few are tried.",
    "people:guessing-stops": "Passwords, codes and invites are guessed a few times, on record.",
    "people:keys-overlap": "A replaced key goes on for its overlap, at most a day.",
    "people:keys-within-scopes": "A key is good for its scopes, and makes none that may more.",
    "people:last-admin-stays": "A tenant that has an active admin keeps one, whoever acts at once.",
    "people:leave-at-once": "With a person go their sessions, keys and unused approvals.",
    "people:no-planted-session": "Each sign-in begins a session that nobody knew before.",
    "people:not-told-apart": "Who exists is told neither by words nor by work.",
    "people:own-page-writes": "A browser writes only from our own page.",
    "people:own-pages-write": "No other site writes, signs in or leads away with our pages.",
    "people:role-counts-at-once": "A role counts from the next request, in every replica.",
    "people:second-factor": "A password alone is nothing where a second factor is due.",
    "people:sign-in-limited": "Sign-in is limited per account and address from the start.",
    "people:step-up-for-factors": "Second factors are changed only right after a proof.",
    "people:super-admin-by-the-host": "Only the host makes a super-admin; control cannot.",
    "policy:refused-at-save": "What a policy may not do is refused with rule, line and column.",
    "stops:at-once": "What somebody stops is refused within a second, and nothing beside it.",
    "stops:never-forgotten": "No restart forgets a revocation that was acknowledged.",
    "stops:released-by-two": "Two admins end a stop; the only one alone, freshly signed in.",
    "stops:without-control": "The machine's own file stops calls; an unreadable one stops all.",
    "tenancy:others-are-not-found": "Another tenant's resource does not exist.",
    "tenancy:super-admin-on-record": "A super-admin's reason is kept before anything is done.",
    "tenancy:unset-sees-nothing": "Without a tenant no service sees or writes a tenant's row.",
    "tokens:limited": "Tokens are limited per client, failures per client and address.",
    "tools:another-definition-hides": "A tool with another definition than the approved is hidden.",
}


def promise(name: str) -> pytest.MarkDecorator:
    """Marks a test as showing the named promise; an unknown name fails at import."""
    if name not in PROMISES:
        raise KeyError(f"no such promise: {name} (tests/promises.py)")
    return pytest.mark.promise(name)
