"""Kept: the headers of a redacted flow that matter for usage, and the words in them that tell of nobody.

Room: flows. Imports the standard library. Promises that of a header which is kept each word is one that its kind is
known to have; any other word becomes filler of the same length, as everything does in a header that is not listed.
"""

import re

_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,6})?"
_DATE = r"20[0-9]{2}-[01][0-9]-[0-3][0-9]"
_DAY = (
    r"Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec|GMT"
    r"|[0-9]{2}(?::[0-9]{2}){0,2}|[0-9]{4}"
)
_VERSION = r"v?[0-9]{1,6}(?:\.[0-9]{1,6}){0,3}(?:-?(?:a|b|rc|alpha|beta|dev|post)[.-]?[0-9]{0,4})?"
_ID = r"(?!.*sk-ant-)[A-Za-z0-9_.:-]{1,128}"
_ENCODING = r"gzip|x-gzip|deflate|br|zstd|identity|compress|chunked|trailers|\*"

_BETAS = """
1h 1m 128k advanced advisor agent api batches beta budget budgets cache caching claude clear cli client code compact
computer consumer context control converter count counting dev diagnosis editing efficient effort eager environments
execution extended fallback fallbacks fast fetch files fine foundry from grained images input inputs interleaved keep
large limit long managed management max mcp memory message messages mid mode model oauth on output outputs parallel pdfs
prompt redact research save schema scope search servers skills stream streaming structured summarization summary task
tasks thinking to token tokens tool tools ttl uploads usage use user web
"""
_BETA = rf"(?:{'|'.join(_BETAS.split())})"

_LIMITS = """
requests tokens input output priority unified 5h 7d opus sonnet haiku overage fallback status reset limit remaining
utilization representative claim percentage surpassed threshold disabled reason upgrade paths
"""
_LIMIT = rf"(?:{'|'.join(_LIMITS.split())})"
_LIMIT_VALUE = (
    rf"{_NUMBER}|{_DATE}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}(?:\.[0-9]{{1,9}})?(?:Z|[+-][0-9]{{2}}:[0-9]{{2}})"
    r"|allowed|allowed_warning|rejected|available|five_hour|seven_day(?:_opus|_sonnet)?|overage|true|false"
    r"|org_level_disabled|out_of_credits"
)

_PRODUCTS = """
claude-cli claude-code claude-desktop anthropic anthropic-sdk-python anthropic-sdk-typescript Anthropic AsyncAnthropic
Async Python Python-urllib python-httpx python-requests python-urllib3 aiohttp httpx curl Wget node node-fetch undici
axios Bun Deno Go-http-client okhttp Java Apache-HttpClient reqwest hyper Ruby Faraday PostmanRuntime insomnia HTTPie
Mozilla AppleWebKit Chrome Safari Firefox Gecko Edg Electron ai-sdk ai anthropic-ts litellm mitmproxy mitmdump
"""
_LANGUAGES = "Python|JS|TypeScript|Go|Java|Kotlin|Ruby|PHP|C#|CSharp"
_AGENT = (
    rf"(?:{'|'.join(_PRODUCTS.split())})(?:/(?:{_LANGUAGES}|{_VERSION}))?"
    rf"|v?[0-9]{{1,6}}(?:\.[0-9]{{1,6}}){{0,2}}"  # no address
    r"|external|internal|cli|sdk-cli|sdk-ts|sdk-py|claude-vscode|vscode|agent-sdk/[0-9.]{1,16}"
)

_KEPT = {
    r"accept": rf"(?:\*|text|application)/(?:\*|json|event-stream|html|plain)|q={_NUMBER}|{_ENCODING}",
    r"accept-encoding|te|transfer-encoding": rf"{_ENCODING}|q={_NUMBER}",
    r"anthropic-beta": rf"{_BETA}(?:-{_BETA}){{0,7}}-20[0-9]{{2}}-?[01][0-9]-?[0-3][0-9]",
    r"anthropic-version": _DATE,
    r"anthropic-(?:organization|workspace)-id|request-id": _ID,
    rf"anthropic-ratelimit(?:-{_LIMIT}){{1,5}}": _LIMIT_VALUE,
    r"cache-control": r"no-cache|no-store|no-transform|must-revalidate|private|public|(?:s-)?max-?age=[0-9]{1,9}",
    r"connection": r"keep-alive|close|upgrade",
    r"content-length": r"[0-9]{1,12}",
    r"date": _DAY,
    r"retry-after(?:-ms)?": rf"{_NUMBER}|{_DAY}",
    r"user-agent": _AGENT,
    r"x-app": r"cli|cli-bg|desktop|vscode|web",
    r"x-should-retry": r"true|false",
    r"x-stainless-arch": r"arm|arm64|x32|x64|x86_64|aarch64|ia32|unknown",
    r"x-stainless-async": r"true|false|async:(?:asyncio|trio|unknown)",
    r"x-stainless-(?:helper-method|poll-helper|stream-helper|raw-response)": r"true|false|raw|stream",
    r"x-stainless-lang": r"python|js|go|java|kotlin|ruby|php|csharp",
    r"x-stainless-os": r"MacOS|Linux|Windows|Android|iOS|FreeBSD|OpenBSD|Unknown",
    r"x-stainless-package-version": _VERSION,
    r"x-stainless-(?:retry-count|timeout|read-timeout)": rf"{_NUMBER}|NOT_GIVEN",
    r"x-stainless-runtime": r"CPython|PyPy|node|deno|bun|go|JRE|ruby|unknown|browser:(?:chrome|firefox|safari|edge)",
    r"x-stainless-runtime-version": _VERSION,
    r"x-usage-ledger": r"blocked",
}
"""Names of headers, and what a word in them may be."""

_compiled = [(re.compile(names), re.compile(words)) for names, words in _KEPT.items()]
_WORD = re.compile(r"[^,;() ]+")


def kept_value(name: str, value: str) -> str | None:
    """Return a header's value with filler for its odd words; None where it is not kept. `name` is in lower case."""
    words = next((words for names, words in _compiled if names.fullmatch(name)), None)
    if words is None:
        return None
    return _WORD.sub(lambda word: word[0] if words.fullmatch(word[0]) else "x" * len(word[0]), value)
