// Writes zod.json: what zod's own converter and zod-to-json-schema make of typical arguments and answers.
import { z } from "zod";
import { z as z3 } from "zod3";
import { zodToJsonSchema } from "zod-to-json-schema";

const tree = z.object({ value: z.int(), get children() { return z.array(tree).max(3); } });
const four = {
  weather: z.object({ city: z.string().min(1), unit: z.enum(["C", "F"]).default("C"), days: z.int().min(1).max(14).optional() }),
  user: z.object({ id: z.uuid(), email: z.email(), site: z.url().optional(), since: z.iso.datetime(), born: z.iso.date().nullable() }),
  strict: z.strictObject({ a: z.string(), b: z.number().positive().multipleOf(0.5) }),
  loose: z.looseObject({ a: z.string() }),
  record: z.object({ scores: z.record(z.string(), z.number()), flags: z.partialRecord(z.enum(["x", "y"]), z.boolean()) }),
  record_of_enum: z.record(z.enum(["north", "south"]), z.int().min(0).max(99)),
  record_of_pattern: z.record(z.string().regex(/^[a-z]{2}$/), z.string()),
  union: z.object({ value: z.union([z.string(), z.number(), z.null()]) }),
  tagged: z.discriminatedUnion("type", [
    z.object({ type: z.literal("text"), text: z.string() }),
    z.object({ type: z.literal("image"), url: z.url(), alt: z.string().optional() }),
  ]),
  tuple: z.object({ point: z.tuple([z.number(), z.number()]), rest: z.tuple([z.string()], z.int()) }),
  intersection: z.object({ a: z.string() }).and(z.object({ b: z.int() })),
  tree,
  ids: z.object({ cuid: z.cuid2(), nano: z.nanoid(), ulid: z.ulid(), emoji: z.emoji(), base64: z.base64(), jwt: z.jwt().optional() }),
  network: z.object({ v4: z.ipv4(), v6: z.ipv6().optional(), cidr: z.cidrv4(), number: z.e164() }),
  strings: z.object({ start: z.string().startsWith("a"), end: z.string().endsWith("z"), has: z.string().includes("."), low: z.string().lowercase(), all: z.string().regex(/^(?!.*\.\.)[\w./-]+$/) }),
  literals: z.object({ one: z.literal(1), many: z.literal(["a", 2, null]), none: z.null(), always: z.boolean() }),
  described: z.object({ q: z.string().describe("What to look for"), limit: z.number().meta({ title: "Limit", examples: [5] }).optional() }),
  never: z.object({ a: z.string(), b: z.never().optional(), any: z.any(), unknown: z.unknown() }),
};

const list = z3.lazy(() => z3.object({ word: z3.string(), next: list.nullable() }));
const shared = z3.object({ street: z3.string(), zip: z3.string().regex(/^\d{5}$/) });
const three = {
  search: z3.object({ query: z3.string().max(200), tags: z3.set(z3.string()).optional(), page: z3.number().int().positive().default(1) }),
  order: z3.object({ bill: shared, ship: shared, items: z3.array(z3.object({ sku: z3.string(), n: z3.number().int().gt(0).lt(100) })).nonempty() }),
  list,
  record: z3.object({ map: z3.map(z3.string(), z3.number()), record: z3.record(z3.enum(["a", "b"]), z3.string()), long: z3.record(z3.string().min(3), z3.number()) }),
  union: z3.object({ v: z3.union([z3.string(), z3.number()]), w: z3.union([z3.object({ a: z3.string() }), z3.object({ b: z3.number() })]) }),
  nullable: z3.object({ name: z3.string().nullable(), mood: z3.enum(["good", "bad"]).nullable(), age: z3.number().int().min(0).nullable(), where: shared.nullable(), list: z3.array(z3.string().nullable()).nullish() }),
  tuple: z3.object({ pair: z3.tuple([z3.string(), z3.number()]), more: z3.tuple([z3.boolean()]).rest(z3.string()) }),
  formats: z3.object({ email: z3.string().email(), id: z3.string().uuid(), url: z3.string().url(), at: z3.string().datetime(), ip: z3.string().ip(), code: z3.string().base64(), when: z3.date() }),
  both: z3.intersection(z3.object({ a: z3.string() }), z3.object({ b: z3.number() })),
  effects: z3.object({ n: z3.number().multipleOf(0.01), s: z3.string().trim().min(2).refine((s) => s !== "xx"), big: z3.bigint().optional() }).strict(),
};

const schemas = {};
for (const [name, schema] of Object.entries(four)) schemas[`zod4_${name}`] = z.toJSONSchema(schema, { io: "input" });
for (const name of ["user", "tuple", "record", "tree"]) {
  schemas[`zod4_draft7_${name}`] = z.toJSONSchema(four[name], { target: "draft-7" });
}
for (const name of ["user", "tuple", "union"]) {
  schemas[`zod4_openapi_${name}`] = z.toJSONSchema(four[name], { target: "openapi-3.0" });
}
schemas.zod4_draft4_strict = z.toJSONSchema(four.strict, { target: "draft-4" });
for (const [name, schema] of Object.entries(three)) schemas[`zod3_${name}`] = zodToJsonSchema(schema);
for (const name of ["nullable", "order", "tuple", "effects", "list"]) {
  schemas[`zod3_openapi_${name}`] = zodToJsonSchema(three[name], { target: "openApi3" });
}
schemas.zod3_named_order = zodToJsonSchema(three.order, { name: "Order", definitions: { Address: shared } });
schemas.zod3_2019_tuple = zodToJsonSchema(three.tuple, { target: "jsonSchema2019-09" });
const lines = Object.entries(schemas).map(([name, schema]) => `${JSON.stringify(name)}: ${JSON.stringify(schema)}`);
console.log(`{\n${lines.join(",\n")}\n}`);
