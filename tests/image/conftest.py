from tests.docker_parts import base_image, engine, locked_registry, registry

__all__ = ["base_image", "engine", "locked_registry", "registry"]
