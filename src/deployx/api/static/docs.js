// Lists every call of the OpenAPI document with a form to try it. Answers are shown as text, never as markup.
"use strict";

function element(name, text, parent) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

async function send(method, path, body) {
  const options = { method, headers: {} };
  if (body) {
    options.headers["Content-Type"] = "application/json";
    options.body = body;
  }
  const answer = await fetch(path, options);
  const text = await answer.text();
  let shown = text;
  try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: shown as it came */ }
  return { ok: answer.ok, text: `${answer.status} ${answer.statusText}\n${shown}` };
}

function example(schema, document_, depth = 0) {
  if (!schema || depth > 4) return null;
  if (schema.$ref) return example(document_.components.schemas[schema.$ref.split("/").pop()], document_, depth + 1);
  if (schema.default !== undefined) return schema.default;
  if (schema.enum) return schema.enum[0];
  if (schema.anyOf) return example(schema.anyOf[0], document_, depth + 1);
  if (schema.type === "object") {
    const made = {};
    for (const name of schema.required || []) made[name] = example(schema.properties[name], document_, depth + 1);
    return made;
  }
  return { string: "", integer: 1, number: 1, boolean: false, array: [] }[schema.type] ?? null;
}

function call(method, path, operation, document_, parent) {
  const box = element("details", "", parent);
  element("summary", `${method.toUpperCase()} ${path}`, box);
  element("p", operation.description || operation.summary || "", box);
  const form = element("form", "", box);
  const address = element("input", "", element("label", "Path ", form));
  address.value = path;
  address.size = 80;
  let body = null;
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  if (content) {
    body = element("textarea", "", element("p", "", form));
    body.rows = 8;
    body.cols = 80;
    body.setAttribute("aria-label", "Body");
    body.value = JSON.stringify(example(content.schema, document_), null, 2);
  }
  element("button", "Send", form);
  const shown = element("pre", "", box);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    shown.textContent = (await send(method.toUpperCase(), address.value, body && body.value)).text;
  });
}

document.getElementById("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const values = Object.fromEntries(new FormData(event.target));
  const answer = await send("POST", "/api/auth/login", JSON.stringify(values));
  document.getElementById("who").textContent = answer.ok ? `Signed in as ${values.username}.` : answer.text;
});

fetch("/api/openapi.json").then((answer) => answer.json()).then((document_) => {
  const calls = document.getElementById("calls");
  for (const [path, methods] of Object.entries(document_.paths)) {
    for (const [method, operation] of Object.entries(methods)) call(method, path, operation, document_, calls);
  }
});
