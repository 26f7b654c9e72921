// Writes mcp.json: what published MCP servers say of their tools' arguments, without descriptions.
// Keys are dummies: the servers are asked for `tools/list` only.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { tmpdir } from "node:os";

const env = { BRAVE_API_KEY: "x", GITHUB_PERSONAL_ACCESS_TOKEN: "x", GITLAB_PERSONAL_ACCESS_TOKEN: "x", GOOGLE_MAPS_API_KEY: "x", SLACK_BOT_TOKEN: "xoxb-x", SLACK_TEAM_ID: "T0" };
const servers = {
  filesystem: ["mcp-server-filesystem", tmpdir()],
  memory: ["mcp-server-memory"],
  everything: ["mcp-server-everything"],
  thinking: ["mcp-server-sequential-thinking"],
  github: ["mcp-server-github"],
  gitlab: ["mcp-server-gitlab"],
  postgres: ["mcp-server-postgres", "postgresql://localhost/x"],
  slack: ["mcp-server-slack"],
  puppeteer: ["mcp-server-puppeteer"],
  brave: ["mcp-server-brave-search"],
  maps: ["mcp-server-google-maps"],
  git: ["mcp-server-git"],
  fetch: ["mcp-server-fetch"],
  time: ["mcp-server-time"],
};
// Of servers with many tools, those whose schemas differ in kind from the others'.
const chosen = {
  filesystem: ["read_text_file", "read_multiple_files", "edit_file", "list_directory_with_sizes"],
  memory: ["create_entities", "create_relations"],
  everything: ["get-annotated-message", "get-env", "get-resource-links", "get-structured-content"],
  github: ["push_files", "list_issues", "search_code", "create_pull_request_review"],
  gitlab: ["create_or_update_file"],
  git: ["git_diff", "git_log"],
  maps: ["maps_distance_matrix"],
  slack: ["slack_get_channel_history"],
  puppeteer: ["puppeteer_navigate"],
  brave: ["brave_web_search"],
  time: ["convert_time"],
};

async function tools([command, ...args]) {
  const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ["pipe", "pipe", "ignore"] });
  const send = (message) => child.stdin.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");
  send({ id: 1, method: "initialize", params: { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: { name: "corpus", version: "1" } } });
  for await (const line of createInterface({ input: child.stdout })) {
    const message = JSON.parse(line);
    if (message.id === 1) {
      send({ method: "notifications/initialized" });
      send({ id: 2, method: "tools/list", params: {} });
    } else if (message.id === 2) {
      child.kill();
      return message.result.tools;
    }
  }
  throw new Error(`${command} said nothing`);
}

// A property may be called "description": only those of schemas are prose, which is a string.
function bare(value) {
  if (Array.isArray(value)) return value.map(bare);
  if (value === null || typeof value !== "object") return value;
  const isProse = ([key, member]) => ["description", "title"].includes(key) && typeof member === "string";
  return Object.fromEntries(Object.entries(value).filter((entry) => !isProse(entry)).map(([key, member]) => [key, bare(member)]));
}

const schemas = {};
for (const [server, command] of Object.entries(servers)) {
  for (const { name, inputSchema } of await tools(command)) {
    if (chosen[server] && !chosen[server].includes(name)) continue;
    schemas[`mcp_${server}_${name}`] = bare(inputSchema);
  }
}
const lines = Object.entries(schemas).map(([name, schema]) => `${JSON.stringify(name)}: ${JSON.stringify(schema)}`);
console.log(`{\n${lines.join(",\n")}\n}`);
process.exit(0);
