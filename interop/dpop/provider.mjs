// An authorization server and a resource that are not ours: npm's oidc-provider, which wants DPoP proofs with its own nonces.
//   node provider.mjs CODE_VERIFIER REDIRECT_URI
// It prints its URL. GET /code answers an authorization code for alice, as a login would; GET /spent how many refresh tokens were used.
import { createHash, randomBytes } from "node:crypto"
import { createServer } from "node:http"
import { Provider } from "oidc-provider"

const [verifier, callback] = process.argv.slice(2)
const server = createServer((req, res) => handle(req, res))
await new Promise((up) => server.listen(0, "127.0.0.1", up))
const issuer = `http://127.0.0.1:${server.address().port}`
let spent = 0

const provider = new Provider(issuer, {
  clients: [{
    client_id: "cli", token_endpoint_auth_method: "none", redirect_uris: [callback], application_type: "native",
    grant_types: ["authorization_code", "refresh_token"], response_types: ["code"], dpop_bound_access_tokens: true,
  }],
  features: { dPoP: { enabled: true, nonceSecret: randomBytes(32), requireNonce: () => true }, devInteractions: { enabled: false }, userinfo: { enabled: true } },
  findAccount: (_, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
  rotateRefreshToken: true, // each is good once
  ttl: { AccessToken: 3600, Grant: 3600, RefreshToken: 3600, AuthorizationCode: 60 },
})
provider.on("refresh_token.consumed", () => { spent++ })
const answer = provider.callback()

async function handle(req, res) {
  if (req.url === "/code") {
    const client = await provider.Client.find("cli")
    const grant = new provider.Grant({ accountId: "alice", clientId: "cli" })
    grant.addOIDCScope("openid offline_access")
    const code = new provider.AuthorizationCode({
      accountId: "alice", client, grantId: await grant.save(), redirectUri: callback, scope: "openid offline_access", gty: "authorization_code",
      codeChallenge: createHash("sha256").update(verifier).digest("base64url"), codeChallengeMethod: "S256",
    })
    res.end(await code.save())
    return
  }
  if (req.url === "/spent") {
    res.end(String(spent))
    return
  }
  answer(req, res)
}
console.log(issuer)
