"""Subscriptions: each decided alone."""

from collections.abc import Mapping

from command_api.domain import subscription
from command_api.handlers.base import Handler, single_aggregate
from schemas.commands import Command
from schemas.commands.subscription import (
    CreateSubscription,
    DeleteSubscription,
    DisableSubscription,
    EnableSubscription,
    IssueSubscriptionCredentials,
    RotateSubscriptionSecret,
)

HANDLERS: Mapping[type[Command], Handler] = {
    command: single_aggregate(subscription.decide, lambda command: command.subscription_id)
    for command in (
        CreateSubscription,
        IssueSubscriptionCredentials,
        RotateSubscriptionSecret,
        DisableSubscription,
        EnableSubscription,
        DeleteSubscription,
    )
}
