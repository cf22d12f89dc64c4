"""What a command imports first: a stop is a stop during the other imports, which take seconds."""

from diffem.signals import stop_on_signals

stop_on_signals()
