// Codex CLI answers a question, by a provider of its configuration file; all else is its default.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const home = join(process.cwd(), "codex-home");
mkdirSync(home);
writeFileSync(
  join(home, "config.toml"),
  `model = "vllm-primary"
model_provider = "emberline"

[model_providers.emberline]
name = "Emberline"
base_url = "${process.env.OPENAI_BASE_URL}"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
`,
);
const codex = fileURLToPath(new URL("node_modules/.bin/codex", import.meta.url));
const options = ["exec", "--json", "--skip-git-repo-check", "--sandbox", "read-only", "What is the capital of France?"];
const run = spawnSync(codex, options, {
  env: { ...process.env, CODEX_HOME: home },
  stdio: ["ignore", "pipe", "pipe"],
  encoding: "utf8",
  timeout: 600_000,
});
const said = `${run.stdout}\n${run.stderr}`;
const events = run.stdout.split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
// It sets no temperature, and at 1 so small a model may write until the context is full: that is the model's.
const isFull = (event) => JSON.stringify(event).includes("Incomplete response returned, reason: max_output_tokens");
const failed = events.filter((event) => ["error", "turn.failed"].includes(event.type) && !isFull(event));
assert.deepEqual(failed, [], said);
assert.ok(events.some((event) => event.type === "turn.completed" || isFull(event)), said);
