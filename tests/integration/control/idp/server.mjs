// An OpenID provider of others' making (npm oidc-provider) for tests: one client, forms as it ships
// them, people by name. Configured by one JSON line on stdin; says its address on stdout.
import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const lines = createInterface({ input: process.stdin });
const [line] = await once(lines, "line");
const told = JSON.parse(line);
const { default: Provider } = await import(pathToFileURL(told.module).href);

const server = createServer();
server.listen(0, "127.0.0.1");
await once(server, "listening");
const issuer = `http://127.0.0.1:${server.address().port}`;

const key = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ format: "jwk" });
const provider = new Provider(issuer, {
  clients: [
    {
      client_id: told.client_id,
      client_secret: told.client_secret,
      redirect_uris: [told.redirect_uri],
      response_types: ["code"],
      grant_types: ["authorization_code"],
      require_auth_time: true,
      backchannel_logout_uri: told.logout_uri,
      backchannel_logout_session_required: true,
    },
  ],
  jwks: { keys: [{ ...key, use: "sig", alg: "RS256", kid: "test" }] },
  cookies: { keys: ["of tests"] },
  claims: { openid: ["sub", "groups"], email: ["email", "email_verified"] },
  conformIdTokenClaims: false,
  fetch: (url, options) => fetch(url, { ...options, dispatcher: undefined }), // ours is loopback
  features: { backchannelLogout: { enabled: true }, devInteractions: { enabled: true } },
  async findAccount(_, sub) {
    const groups = told.groups[sub] ?? [];
    const claims = { sub, groups, email: `${sub}@example.org`, email_verified: true };
    return { accountId: sub, claims: async () => claims };
  },
});
server.on("request", provider.callback());
lines.on("close", () => process.exit(0)); // who started us is gone
process.stdout.write(`${JSON.stringify({ issuer })}\n`);
