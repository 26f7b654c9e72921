#!/usr/bin/env bash
# Streams one chat answer with curl and jq: chat.sh [PROMPT]
set -euo pipefail

base=${OPENAI_BASE_URL:-http://127.0.0.1:3000/v1}
key=${OPENAI_API_KEY:-unused}
model=${MODEL:-smollm2-135m-instruct}
prompt=${1:-What is machine learning? Answer in one sentence.}

body=$(jq -n --arg model "$model" --arg prompt "$prompt" \
  '{$model, messages: [{role: "user", content: $prompt}], max_tokens: 200, stream: true}')

# Each event is a line `data: {chunk}`, the last one `data: [DONE]`. Between them are empty lines and, while
# no token comes, comments that begin with a colon. Any other line is the body of an error.
curl --silent --show-error --no-buffer --fail-with-body "$base/chat/completions" \
  -H "Authorization: Bearer $key" -H "Content-Type: application/json" -d "$body" | {
  complete=no
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      "data: [DONE]") complete=yes ;;
      "data: "*)
        jq -j 'if .error then "error: \(.error.message)\n" | halt_error(1) else .choices[0].delta.content // "" end' \
          <<<"${line#data: }" || exit 1
        ;;
      "" | :*) ;;
      *) printf '%s\n' "$line" >&2 ;;
    esac
  done
  [ "$complete" = yes ] || { echo "error: the answer is not complete" >&2 && exit 1; }
  echo
} || exit 1
