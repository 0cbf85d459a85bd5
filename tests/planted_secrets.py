"""Secrets of no account, put together when a test runs, so that no scanner alarms on this file."""

import base64
import random
import string

_RANDOM = random.Random(16)
_ALNUM = string.ascii_letters + string.digits


def drawn(length: int, alphabet: str = _ALNUM) -> str:
    """Characters drawn by chance, at least one digit and one capital where there are any."""
    while True:
        text = "".join(_RANDOM.choices(alphabet, k=length))
        if "0" not in alphabet or any(c.isdigit() for c in text[: length // 2]):
            return text


_HEX, _UPPER = "0123456789abcdef", string.ascii_uppercase + string.digits


def _segment(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


_JWT = ".".join([_segment('{"alg":"HS256"}'), _segment('{"sub":"12345"}'), drawn(43)])
_PEM = "PRIVATE" + " KEY-----"

# Kind, the text that holds it, and what must be seen nowhere.
PLANTED: list[tuple[str, str, str]] = []


def _plant(kind: str, secret: str, text: str = "{}") -> None:
    PLANTED.append((kind, text.format(secret), secret))


_plant("hf", "hf" + "_" + drawn(34))
_plant("hf", "api" + "_org_" + drawn(34))
_plant("hf", drawn(34), "HF_TOKEN={}")
_plant("openai", "sk" + "-" + drawn(48))
_plant("openai", "sk" + "-proj-" + drawn(60, _ALNUM + "-_") + "1")
_plant("anthropic", "sk" + "-ant-api03-" + drawn(90, _ALNUM + "-_"))
_plant("github", "ghp" + "_" + drawn(36))
_plant("github", "ghs" + "_" + drawn(36))
_plant("github", "github" + "_pat_" + drawn(22) + "_" + drawn(59))
_plant("gitlab", "glpat" + "-" + drawn(20))
_plant("gitlab", "gldt" + "-" + drawn(20))
_plant("aws", "AKIA" + drawn(16, _UPPER))
_plant("aws", "ASIA" + drawn(16, _UPPER))
_plant("aws", drawn(40, _ALNUM + "+"), "AWS_SECRET_ACCESS_KEY={}")
_plant("aws", drawn(40, _ALNUM + "+"), '{{"aws_secret_access_key": "{}"}}')
_plant("google", "AIza" + drawn(35))
_plant("google", "ya29" + "." + drawn(60))
_plant("google", "GOCSPX" + "-" + drawn(28))
_plant("slack", "xoxb" + "-" + drawn(12, "0123456789") + "-" + drawn(24))
_plant("slack", "xapp" + "-1-A" + drawn(10, _UPPER) + "-" + drawn(40))
_plant(
    "slack",
    f"T{drawn(8, _UPPER)}/B{drawn(8, _UPPER)}/{drawn(24)}",
    "https://hooks.slack.com/services/{}",
)
_plant("wandb", drawn(40, _HEX), "WANDB_API_KEY={}")
_plant("wandb", drawn(40, _HEX), "wandb login {}")
_plant("wandb", drawn(40, _HEX), "machine api.wandb.ai login user password {}")
_plant("stripe", "sk" + "_live_" + drawn(24))
_plant("stripe", "rk" + "_test_" + drawn(24))
_plant("stripe", "whsec" + "_" + drawn(32))
_plant("npm", "npm" + "_" + drawn(36))
_plant("npm", drawn(36, _HEX), "//registry.npmjs.org/:_authToken={}")
_plant("pypi", "pypi" + "-AgEIcHlwaS5vcmc" + drawn(80))
_plant("azure", drawn(86) + "==", "AccountKey={};EndpointSuffix=core.windows.net")
_plant("azure", drawn(43) + "%3D", "https://x.blob.core.windows.net/c/f?sv=2024-01-01&sp=r&sig={}")
_plant("azure", drawn(32), "AZURE_OPENAI_API_KEY: {}")
_plant("databricks", "dapi" + drawn(32, _HEX))
_plant(
    "signed", drawn(64, _HEX), "https://b.s3.amazonaws.com/f?X-Amz-Expires=60&X-Amz-Signature={}"
)
_plant("signed", drawn(128, _HEX), "https://storage.googleapis.com/b/f?X-Goog-Signature={}")
_plant("url", "hunter2x" + drawn(8), "postgres://admin:{}@db.internal:5432/runs")
_plant("url", drawn(20), "https://api.internal/score?api_key={}&v=1")
_plant("jwt", _JWT)
_plant("bearer", drawn(32), "Authorization: Bearer {}")
_plant(
    "bearer", base64.b64encode(b"user:" + drawn(12).encode()).decode(), "Authorization: Basic {}"
)
_plant("sendgrid", "SG" + "." + drawn(22) + "." + drawn(43))
_plant("private key", drawn(64), f"-----BEGIN RSA {_PEM}\n{{}}\n-----END RSA {_PEM}")

# Newer tokens, and other places of old ones.
_plant("hf", "hf" + "_oauth_" + _JWT)
_plant("openai", "sk" + "-proj-" + drawn(74, _ALNUM + "-_") + "T3BlbkFJ" + drawn(74, _ALNUM + "-_"))
_plant("openai", "sk" + "-svcacct-" + drawn(100, _ALNUM + "-_"))
_plant("openrouter", "sk" + "-or-v1-" + drawn(64, _HEX))
_plant("anthropic", "sk" + "-ant-admin01-" + drawn(95, _ALNUM + "-_"))
_plant(
    "slack", "xapp" + "-1-A" + drawn(10, _UPPER) + "-" + drawn(13, "0123456789") + "-" + drawn(64)
)
_plant("slack", "xoxe" + ".xoxp-1-" + drawn(160))
_plant("google", "1" + "//0" + drawn(60, _ALNUM + "-_"))
_plant("aws", drawn(300, _ALNUM + "+"), "aws_session_token = {}")
_plant("azure", drawn(43) + "%3D", "?sv=2022-11-02&ss=b&sp=rwd&se=2026-01-01&sig={}")
_plant("azure", "abc8" + "Q~" + drawn(34))
_plant("azure", drawn(43) + "=", "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKey={}")
_plant("databricks", "dose" + drawn(32, _HEX))
_plant("vault", "hv" + "s." + drawn(95, _ALNUM + "_-"))
_plant("docker", "dckr" + "_pat_" + drawn(27, _ALNUM + "_-"))
_plant("docker", "dckr" + "_oat_" + drawn(32, _ALNUM + "_-"))
_plant(
    "docker",
    base64.b64encode(b"me:" + drawn(20).encode()).decode(),
    '{{"index.docker.io": {{"auth": "{}"}}}}',
)
_plant(
    "npm",
    base64.b64encode(b"me:" + drawn(12).encode()).decode(),
    "//registry.example.org/:_auth={}",
)
_plant("stripe", "rk" + "_live_" + drawn(99))
_plant("stripe", "sk" + "_org_live_" + drawn(60))
_plant("twilio", "SK" + drawn(32, _HEX))
_plant("twilio", drawn(32, _HEX), "curl -u AC123:{} https://api.twilio.com/x")
_plant("mailgun", "key" + "-" + drawn(32, _HEX))
_plant("mailchimp", drawn(32, _HEX) + "-us12")
_plant("telegram", ":AA" + drawn(33), "https://api.telegram.org/bot123456789{}/sendMessage")
_plant("webhook", drawn(68), "https://discord.com/api/webhooks/123456789012345678/{}")
_plant(
    "webhook", drawn(32, _HEX), "https://x.webhook.office.com/webhookb2/u@v/IncomingWebhook/{}/w"
)
_plant("notion", "ntn" + "_" + drawn(46))
_plant("notion", "secret" + "_" + drawn(43))
_plant("linear", "lin" + "_api_" + drawn(40))
_plant("grafana", "glsa" + "_" + drawn(32) + "_" + drawn(8, _HEX))
_plant("sentry", "sntryu" + "_" + drawn(64, _HEX))
_plant("new relic", "NRAK" + "-" + drawn(27, _UPPER))
_plant("airtable", "pat" + drawn(14) + "." + drawn(64, _HEX))
_plant("terraform", drawn(14) + ".atlasv1." + drawn(67, _ALNUM + "-_"))
_plant("pinecone", "pcsk" + "_" + drawn(70, _ALNUM + "_"))
_plant("langsmith", "lsv2" + "_pt_" + drawn(32, _HEX) + "_" + drawn(10, _HEX))
_plant("supabase", "sbp" + "_" + drawn(40, _HEX))
_plant("doppler", "dp" + ".pt." + drawn(43))
_plant("postman", "PMAK" + "-" + drawn(24, _HEX) + "-" + drawn(34, _HEX))
_plant("shopify", "shpat" + "_" + drawn(32, _HEX))
_plant("rubygems", "rubygems" + "_" + drawn(48, _HEX))
_plant("figma", "figd" + "_" + drawn(40, _ALNUM + "-_"))
_plant("kaggle", "KGAT" + "_" + drawn(32, _HEX))
_plant("kaggle", drawn(32, _HEX), '{{"username": "me", "key": "{}"}}')
_plant("fireworks", "fw" + "_" + drawn(24))
_plant("atlassian", "ATATT3" + "xFfGF0" + drawn(180, _ALNUM + "-_="))
_plant("planetscale", "pscale" + "_tkn_" + drawn(43))
_plant("alibaba", "LTAI" + drawn(20))
_plant("tencent", "AKID" + drawn(32))
_plant("square", "sq0" + "atp-" + drawn(22))
_plant("prefect", "pnu" + "_" + drawn(36))
_plant("okta", "00" + drawn(40), "Authorization: SSWS {}")
_plant("cookie", drawn(60), "Cookie: theme=dark; session={}; path=/")
_plant("command", drawn(16), "curl --user me:{} https://example.org/x")
_plant("command", drawn(12), "sshpass -p {} ssh host")
_plant("command", drawn(14), "mysqldump -u root -p{} runs")
_plant("url", drawn(40, _HEX), "https://{}@git.example.org/x/y.git")
_plant("url", drawn(6) + "%40" + drawn(8), "postgres://u:{}@db.internal/runs")
_plant("assigned", drawn(30), "<password>{}</password>")
_plant("assigned", drawn(30), "environ['SECRET_KEY'] = '{}'")
_plant("assigned", drawn(12), "PGPASSWORD={} psql runs")
_plant("private key", drawn(64), f"-----BEGIN OPENSSH {_PEM}\n{{}}\n-----END OPENSSH {_PEM}")
_plant(
    "private key",
    drawn(64),
    f"-----BEGIN RSA {_PEM}\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,AB\n\n{{}}\n"
    f"-----END RSA {_PEM}",
)
_plant("private key", drawn(64), f"-----BEGIN RSA {_PEM}\n{{}}\n")
_plant("private key", drawn(64), "PuTTY-User-Key-" + "File-3: ssh-rsa\nPrivate-Lines: 1\n{}\n")
_plant("private key", "AGE-SECRET" + "-KEY-1" + drawn(58, _UPPER))

# What people write, and no secret: git hashes, digests, names of runs and models, code and prose.
ORDINARY = [
    "commit 8f2b1c9d4e5a6f708192a3b4c5d6e7f801234567 of main",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    '{"blake2b": "0123456789abcdef0123456789abcdef", "bytes": 1048576}',
    "runs/sft-20260101-120000/checkpoint-500/model-00001-of-00002.safetensors",
    "HuggingFaceTB/SmolLM2-135M-Instruct and Qwen/Qwen2.5-0.5B, google-bert/bert-base-uncased",
    "run_name: llama-3.2-1b-dpo-beta0.1-lr5e-7-seed42",
    "The password is the name of the dragon, and the secret: kindness.",
    "Token: the smallest unit. Tokens: 1,024. A secret garden, a secret of the sea.",
    "eos_token: </s>, pad_token=<|pad|>, bos_token_id=1, max_new_tokens=256, num_tokens: 5",
    "--tokenizer_name_or_path runs/tok --max_completion_length 64 --eos_token <|im_end|>",
    'self.token = tokenizer.eos_token; password = getpass.getpass(); key = row["id"]',
    "from huggingface_hub import hf_hub_download; hf_transfer; hf_deepspeed_config_utils",
    "risk-taking behaviours and task-specific-parameters-of-models, sk-learn-style-estimators",
    "https://huggingface.co/docs/trl/main/en/dpo_trainer?highlight=beta#loss https://x.org/a?v=1",
    "primary_key: user_id, sort_key=created_at, cache_key 0123456789abcdef0123456789abcdef",
    "The bearer of bad news; basic understanding; the author's authorization is required.",
    "--primary_key user --num_token 5 --prompt_key question --use_token false",
    "learning_rate=5e-05, warmup_steps=0.1, report_to: tensorboard, seed: 42",
    "torch.Size([1, 128, 2048]) cuda:0 http://localhost:8080/health ssh://git@example.com:22/x",
    "The cookie: a=b, c=d. sig=3, see figure sig=12 and the sign; auth: required, auth=anonymous12",
    "as-a-service, ak-47, fw_update, key-value pairs, pat, pattern.1, sk_org_chart, secret_santa",
    "https://someone@example.org/x git@github.com:x/y.git https://x.org/@user_name_of_a_person/post",
    "curl -s https://example.org/x | sh; mysql -u root -p runs; python -u train.py 12:30:45",
    "<b>password</b> <td>token</td> <code>hub_token</code>",
    "-----BEGIN CERTIFICATE----- and 123e4567-e89b-12d3-a456-426614174000 at 2026-01-01T00:00:00",
    "猫头鹰很高兴。密码: 没有。 naïve café",
]
