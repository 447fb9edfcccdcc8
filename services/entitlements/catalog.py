"""The 17 features and the three plans: frozen data, and the only place where a plan is tied to a
feature (entitlements.md 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class OnLapse(StrEnum):
    """What becomes of a feature that was entitled and no longer is."""

    FREEZE = "frozen"
    TIGHTEN = "tightened"
    KEEP = "kept"
    STOP = "stopped"


@dataclass(frozen=True, slots=True)
class Plan:
    key: str
    name: str
    rank: int
    audience: str
    grace_days: int
    mixes_models: bool


@dataclass(frozen=True, slots=True)
class Feature:
    key: str
    name: str
    plan: str
    on_lapse: OnLapse
    description: str


TRIAL_DAYS: Final = 30

PLANS: Final = (
    Plan("trial", "Trial", 1, "Prospects running a proof of concept", 0, mixes_models=False),
    Plan("professional", "Professional", 2, "Security and platform teams in production", 14,
         mixes_models=False),
    Plan("enterprise", "Enterprise", 3, "Large organisations with several compliance frameworks",
         14, mixes_models=True),
)  # fmt: skip

FEATURE_CATALOG: Final = (
    Feature("community_library", "Community Policy Library", "trial", OnLapse.STOP,
            "Ready-made policies, kept up to date."),
    Feature("custom_dlp_patterns", "Custom DLP Patterns", "trial", OnLapse.FREEZE,
            "Own patterns beside the built-in ones."),
    Feature("behavioral_baselines", "Behavioral Baselines", "trial", OnLapse.STOP,
            "What is usual for an agent, and alerts on what is not."),
    Feature("inbound_rules", "Inbound Rules Engine", "professional", OnLapse.FREEZE,
            "Own rules for what tools answer."),
    Feature("context_gate", "Context Gate", "professional", OnLapse.FREEZE,
            "Automatic tool classification, token budgets, trimming."),
    Feature("blast_radius", "Blast Radius Limits", "professional", OnLapse.FREEZE,
            "Limits on how much one call or one agent may touch."),
    Feature("cost_attribution", "Cost Attribution", "professional", OnLapse.STOP,
            "Prices, costs and budgets per agent and team."),
    Feature("siem_webhooks", "SIEM & Webhooks", "professional", OnLapse.KEEP,
            "Records and alerts delivered to other systems."),
    Feature("discovery_connectors", "Discovery Connectors", "professional", OnLapse.STOP,
            "Finds agents and servers that nobody registered."),
    Feature("human_governance", "Human AI Governance", "professional", OnLapse.FREEZE,
            "The same rules for people who use AI tools."),
    Feature("delegation_chains", "Delegation Chains", "enterprise", OnLapse.FREEZE,
            "Agents that act for agents, with rights that only shrink."),
    Feature("workflow_governance", "Workflow Governance", "enterprise", OnLapse.FREEZE,
            "Rules over the steps of a workflow of several agents."),
    Feature("data_protection", "Data Protection Pipeline", "enterprise", OnLapse.TIGHTEN,
            "Payloads kept in full, redacted, or under the tenant's own key."),
    Feature("policy_writer_ai", "Policy Writer AI Assist", "enterprise", OnLapse.STOP,
            "Drafts policies from a description."),
    Feature("compliance_modules", "Compliance Modules", "enterprise", OnLapse.FREEZE,
            "Policies and evidence for vertical frameworks."),
    Feature("saml_sso", "SAML 2.0 SSO", "enterprise", OnLapse.KEEP,
            "Sign-in through a SAML identity provider."),
    Feature("team_management", "Team Management", "enterprise", OnLapse.KEEP,
            "Several people, roles and invitations."),
)  # fmt: skip

RANKS: Final = {plan.key: plan.rank for plan in PLANS}
GRACE_S: Final = {plan.key: plan.grace_days * 86_400 for plan in PLANS}
MIXES_MODELS: Final = {plan.key: plan.mixes_models for plan in PLANS}
LOWEST_PLAN: Final = PLANS[0].key
FEATURES: Final = {feature.key: feature for feature in FEATURE_CATALOG}


def included(feature: Feature, plan: str) -> bool:
    """Whether a plan in force includes the feature: plans are cumulative."""
    return RANKS[plan] >= RANKS[feature.plan]
