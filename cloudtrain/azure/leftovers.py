"""What is there of a run, and what stays after it: asked of Azure, never remembered."""

from typing import Any

from cloudtrain.azure import names
from cloudtrain.azure.errors import is_missing, translated
from cloudtrain.azure.group import TAG_RUN
from cloudtrain.azure.session import Session


def in_group(session: Session, group_name: str) -> list[str]:
    """Ids of the resources in a group; none where the group is gone."""
    from azure.core.exceptions import HttpResponseError

    with translated("listing the resources"):
        try:
            return [str(r.id) for r in session.resources.resources.list_by_resource_group(group_name)]
        except HttpResponseError as error:
            if is_missing(error):
                return []
            raise


def of_run(session: Session, run: str) -> list[str]:
    """Ids of everything of the run that Azure still knows: its group, what lies in it, and what carries its tag."""
    from azure.core.exceptions import HttpResponseError

    found = set(in_group(session, names.group(run)))
    with translated("looking for what is left"):
        tagged = session.resources.resources.list(filter=f"tagName eq '{TAG_RUN}' and tagValue eq '{run}'")
        found.update(str(resource.id) for resource in tagged)
        try:
            found.add(str(session.resources.resource_groups.get(names.group(run)).id))
        except HttpResponseError as error:
            if not is_missing(error):
                raise
    return sorted(found)


def network_watchers(session: Session) -> list[str]:
    """What Azure made by itself when the subscription got its first virtual network in a region: free, and shared."""
    return in_group(session, names.NETWORK_WATCHER_GROUP)


def begin_delete_watcher_group(session: Session) -> Any:
    from azure.core.exceptions import HttpResponseError

    with translated("deleting the network watchers"):
        try:
            return session.resources.resource_groups.begin_delete(
                names.NETWORK_WATCHER_GROUP, polling=session.polling()
            )
        except HttpResponseError as error:
            if is_missing(error):
                return None
            raise
