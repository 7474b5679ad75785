"""The script mitmproxy loads: `mitmdump -s addon/usage.py`. All of it lives in the package beside it."""

from usage_ledger.proxy.addon import UsageLedger
from usage_ledger.proxy.commands import UsageCommands

addons = [UsageLedger(), UsageCommands()]
