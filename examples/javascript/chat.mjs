// Streams one chat answer with OpenAI's JavaScript client: chat.mjs [PROMPT]

import OpenAI from "openai";

const prompt = process.argv[2] ?? "What is machine learning? Answer in one sentence.";

try {
  const client = new OpenAI({
    baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:3000/v1",
    apiKey: process.env.OPENAI_API_KEY ?? "unused",
  });
  const stream = await client.chat.completions.create({
    model: process.env.MODEL ?? "smollm2-135m-instruct",
    messages: [{ role: "user", content: prompt }],
    max_tokens: 200,
    stream: true,
  });
  for await (const chunk of stream) {
    process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
  }
  process.stdout.write("\n");
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
