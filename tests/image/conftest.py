from tests.docker_parts import base_image, engine, locked_registry, registry, trainer_image

__all__ = ["base_image", "engine", "locked_registry", "registry", "trainer_image"]
