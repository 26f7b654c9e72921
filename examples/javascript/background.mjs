// Streams one answer that goes on though a host cuts its requests: background.mjs [PROMPT]

import { setTimeout as sleep } from "node:timers/promises";
import OpenAI, { APIConnectionError, APIError } from "openai";

const ENDS = ["response.completed", "response.incomplete", "response.failed", "error"];
const prompt = process.argv[2] ?? "What is machine learning? Answer in one sentence.";

// The events of one response. Where a stream ends before the response does, another one goes on.
async function* events(client) {
  let stream = await client.responses.create({
    model: process.env.MODEL ?? "smollm2-135m-instruct",
    input: prompt,
    max_output_tokens: 200,
    background: true,
    stream: true,
  });
  let response, last;
  while (true) {
    try {
      for await (const event of stream) {
        // The function ends a stream with a timeout shortly before its host would cut it.
        if (event.type === "error" && event.code === "timeout") break;
        if (event.type === "response.created") response = event.response.id;
        last = event.sequence_number;
        yield event;
        if (ENDS.includes(event.type)) return;
      }
    } catch (error) {
      // An error that the function did not send: the host cut the stream, or the network did.
      const isSent = error instanceof APIError && !(error instanceof APIConnectionError);
      if (response === undefined || isSent) throw error;
    }
    await sleep(100);
    stream = await client.responses.retrieve(response, { stream: true, starting_after: last });
  }
}

try {
  const client = new OpenAI({
    baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:3000/v1",
    apiKey: process.env.OPENAI_API_KEY ?? "unused",
  });
  for await (const event of events(client)) {
    if (event.type === "response.output_text.delta") process.stdout.write(event.delta);
    if (event.type === "error") throw new Error(event.message);
    if (event.type === "response.failed") throw new Error(event.response.error.message);
  }
  process.stdout.write("\n");
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
