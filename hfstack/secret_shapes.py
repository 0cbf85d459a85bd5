"""List the tokens that show by themselves what they are.

Their shapes are those that their makers document, or that gitleaks
(https://github.com/gitleaks/gitleaks, config/gitleaks.toml) and detect-secrets
(https://github.com/Yelp/detect-secrets) look for.
"""

import re
from typing import NamedTuple


class Shape(NamedTuple):
    """A token that can be recognised by itself, at one of the literals that are in it."""

    what: str
    literals: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    before: int = 0  # characters of the token that stand before the literal


def _shape(what: str, literals: str, pattern: str, before: int = 0) -> Shape:
    """Return a rule whose match holds a literal and is no part of a word."""
    bounded = rf"(?<![A-Za-z0-9])(?:{pattern})"
    return Shape(what, tuple(literals.encode().split()), re.compile(bounded.encode()), before)


# What follows a prefix must hold a digit or a capital, so that names of functions stay.
_MIXED = r"(?=[a-z_-]*[A-Z0-9])"
SHAPES = (
    _shape(
        "a Hugging Face token",
        "hf_ api_org_",
        rf"(?:hf|api_org)_(?:{_MIXED}[A-Za-z0-9]{{16,}}|[a-z]{{20,}})",
    ),
    _shape("an Anthropic key", "sk-ant-", r"sk-ant-[a-z0-9]+-[A-Za-z0-9_-]{20,}"),
    _shape(
        "an OpenAI-style key", "sk-", r"sk-(?:(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]|[A-Za-z0-9]){20,}"
    ),
    # of code hosts
    _shape(
        "a GitHub token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}",
    ),
    _shape(
        "a GitLab token",
        "glpat- gldt- glft- glsoat- glrt- glcbt- glptt- gloas- glagent- glimt- GR1348941",
        r"(?:gl(?:pat|dt|ft|soat|rt|cbt|ptt|oas|agent|imt)-|GR1348941)[A-Za-z0-9_.-]{20,}",
    ),
    # of clouds
    _shape(
        "an AWS access key",
        "AKIA ASIA ABIA ACCA",
        r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    ),
    _shape("a Google API key", "AIza", r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    _shape(
        "a Google OAuth secret",
        "GOCSPX- ya29.",
        r"GOCSPX-[A-Za-z0-9_-]{20,}|ya29\.[A-Za-z0-9_-]{20,}",
    ),
    # of messages, payments and packages
    _shape(
        "a Slack token",
        "xox xapp-",
        r"(?:xox[abceoprsd](?:\.xox[bp])?|xapp)-[A-Za-z0-9%-]{10,}",
    ),
    _shape(
        "a Slack webhook",
        "hooks.slack.com/",
        r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9_/+-]{20,}",
    ),
    _shape("a Weights & Biases key", "wandb_v1_", r"wandb_v1_[A-Za-z0-9_-]{20,}"),
    _shape(
        "a Stripe key",
        "sk_live_ sk_test_ rk_live_ rk_test_ sk_org_ whsec_",
        r"(?:[sr]k_(?:org_)?(?:live|test)|whsec)_[A-Za-z0-9+/]{16,}",
    ),
    # of registries and other services
    _shape("an npm token", "npm_", rf"npm_{_MIXED}[A-Za-z0-9]{{30,}}"),
    _shape("a PyPI token", "pypi-AgE", r"pypi-AgE[A-Za-z0-9_-]{50,}"),
    _shape(
        "a Databricks token",
        "dapi dkea dose",
        r"(?:dapi|dkea|dose)[0-9a-f]{32}(?:-\d)?(?![0-9a-z])",
    ),
    _shape("a SendGrid key", "SG.", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{30,}"),
    _shape("a DigitalOcean token", "dop_v1_ doo_v1_", r"do[op]_v1_[0-9a-f]{64}"),
    _shape(
        "a key of a model service",
        "gsk_ r8_ xai- nvapi- pplx- pcsk_ lsv2_ rpa_ KGAT_",
        rf"(?:gsk_|r8_|xai-|nvapi-|pplx-|pcsk_|lsv2_|rpa_|KGAT_){_MIXED}[A-Za-z0-9_-]{{30,}}",
    ),
    _shape(
        "a key of a model service",
        "fw_ as- ak-",
        r"(?:fw_|a[ks]-)(?=[A-Za-z]*[0-9])(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{20,}(?![A-Za-z0-9_-])",
    ),
    # of where programs are kept, built and watched
    _shape("a Docker token", "dckr_", r"dckr_[po]at_[A-Za-z0-9_-]{20,}"),
    _shape("a Vault token", "hvs. hvb. hvr.", r"hv[sbr]\.[A-Za-z0-9_-]{24,}"),
    _shape(
        "a Terraform token",
        ".atlasv1.",
        r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{40,}",
        before=14,
    ),
    _shape("a RubyGems key", "rubygems_", r"rubygems_[0-9a-f]{48}"),
    _shape("a Doppler token", "dp.", r"dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9.]{40,}"),
    _shape("an Atlassian token", "ATATT3 ATCTT3 ATBB", r"(?:AT[AC]TT3|ATBB)[A-Za-z0-9_=-]{28,}"),
    _shape(
        "a token of a dashboard",
        "glsa_ glc_ sntrys_ sntryu_ NRAK- NRII- dt0c01.",
        rf"(?:glsa_|glc_|sntry[su]_|NR(?:AK|II)-|dt0c01\.){_MIXED}[A-Za-z0-9_.+/=-]{{27,}}",
    ),
    # of databases and clouds of one maker
    _shape("a Supabase key", "sbp_ sb_secret_", r"(?:sbp|sb_secret)_[A-Za-z0-9_-]{20,}"),
    _shape("a PlanetScale key", "pscale_", r"pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{32,}"),
    _shape(
        "an Azure client secret",
        "Q~",
        r"[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}(?![A-Za-z0-9_~.-])",
        before=4,
    ),
    _shape("an Alibaba Cloud key", "LTAI", r"LTAI[A-Za-z0-9]{12,26}(?![A-Za-z0-9])"),
    _shape("a Tencent Cloud key", "AKID", r"AKID[A-Za-z0-9]{32}(?![A-Za-z0-9])"),
    _shape("a Google refresh token", "1//0", r"1//0[A-Za-z0-9_-]{40,}"),
    # of mail, chat and shops
    _shape("a Twilio key", "SK", r"SK[0-9a-f]{32}(?![A-Za-z0-9])"),
    _shape("a Mailgun key", "key-", r"(?<![-_])key-[0-9a-f]{32}(?![A-Za-z0-9])"),
    _shape("a Mailchimp key", "-us", r"[0-9a-f]{32}-us[0-9]{1,2}(?![A-Za-z0-9])", before=32),
    Shape(
        "a Telegram bot token",
        (b":AA",),
        re.compile(rb"(?<=[0-9]{8}):AA[A-Za-z0-9_-]{32,34}(?![A-Za-z0-9_-])"),
    ),
    _shape(
        "a webhook",
        "discord.com/api/webhooks/ discordapp.com/api/webhooks/ webhook.office.com/",
        r"(?:discord(?:app)?\.com/api/webhooks|webhook\.office\.com)/[A-Za-z0-9_@/-]{30,}",
    ),
    _shape("a Shopify token", "shp", r"shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32}"),
    _shape("a Square token", "sq0", r"sq0(?:atp|csp)-[A-Za-z0-9_-]{22,}"),
    _shape("a Facebook token", "EAAC EAAM", r"EAA[CM][A-Za-z0-9]{60,}"),
    _shape("an EasyPost key", "EZAK EZTK", r"EZ[AT]K[A-Za-z0-9]{54}"),
    # of where people write and plan
    _shape("a Notion token", "ntn_ secret_", rf"(?:ntn|secret)_{_MIXED}[A-Za-z0-9]{{40,}}"),
    _shape("a Linear key", "lin_", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,}"),
    _shape("an Airtable token", "pat", r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}"),
    _shape("a Figma token", "figd_", r"figd_[A-Za-z0-9_-]{32,}"),
    _shape("a Postman key", "PMAK-", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    _shape("a Prefect key", "pnu_ pnb_", rf"pn[ub]_{_MIXED}[A-Za-z0-9]{{36}}"),
    # of no one service
    _shape("a JSON Web Token", "eyJ", r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[\w-]*"),
    _shape(
        "a private key",
        "-----BEGIN",
        # Its own headers have dashes; where the end was cut off, the lines of base64 are the key.
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
        r"(?:(?:(?!-----)[\s\S]){0,16384}-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
        r"|(?:\s|\\+[rn]|[A-Za-z0-9+/=]{40,})*)",
    ),
    _shape(
        "a private key",
        "PuTTY-User-Key-File-",
        r"PuTTY-User-Key-File-(?:(?!Private-MAC)[\s\S]){0,16384}(?:Private-MAC:\s*[0-9a-f]*)?",
    ),
    _shape("a private key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
)
