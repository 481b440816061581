"""Read and check the settings."""

from server.settings.settings import Settings, SettingsError

__all__ = ["Settings", "SettingsError"]
