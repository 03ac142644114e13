"""The trainer image: planned from the settings, built and pushed with docker-py where the registry lacks it, and the
right to pull it."""

from cloudtrain.image.errors import ImageError
from cloudtrain.image.look import look
from cloudtrain.image.plan import Build, Ensured, plan
from cloudtrain.image.rights import pull_login

__all__ = ["Build", "Ensured", "ImageError", "look", "plan", "pull_login"]
