// Runs every flow of the endpoints with openid-client and oauth4webapi, and takes the tokens with express-oauth2-jwt-bearer:
// three libraries that know nothing of the issuer but its URL.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import https from 'node:https'
import express from 'express'
import { auth, requiredScopes } from 'express-oauth2-jwt-bearer'
import * as oauth from 'oauth4webapi'
import * as client from 'openid-client'

const t = JSON.parse(readFileSync(process.argv[2]))
const issuer = new URL(t.issuer)
const scope = 'orders:read'
const done = []
const step = async (name, run) => {
  try {
    await run()
  } catch (e) {
    console.error(name, e, e.cause)
    process.exit(1)
  }
  done.push(name)
}
const discover = (id, metadata, how) => client.discovery(issuer, id, metadata, how, { algorithm: 'oauth2' })
const web = await discover('web', undefined, client.ClientSecretBasic(t.secret))
const spa = await discover('spa', undefined, client.None())

// sayYes plays the user in a browser: alice signs in on the issuer's page and allows what it asks.
const unescape = (text) => text.replace(/&#(\d+);/g, (_, n) => String.fromCharCode(n)).replaceAll('&quot;', '"').replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&amp;', '&')
const sayYes = async (url) => {
  const shown = await (await fetch(url, { redirect: 'manual' })).text()
  const action = /action="([^"]+)"/.exec(shown)
  const field = /type="hidden" name="([^"]+)" value="([^"]+)"/.exec(shown)
  assert.ok(action && field, shown)
  const body = new URLSearchParams({ [field[1]]: unescape(field[2]), user: 'alice', password: 'wonderland', decision: 'allow' })
  return fetch(new URL(action[1], issuer), { method: 'POST', body, redirect: 'manual' })
}
const authorize = async (url) => {
  const res = await sayYes(url)
  assert.equal(res.status, 303)
  return new URL(res.headers.get('location'))
}
const code = async (config, { par, DPoP } = {}) => {
  const verifier = client.randomPKCECodeVerifier()
  const state = client.randomState()
  const parameters = { redirect_uri: t.redirect, scope, state, code_challenge: await client.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256' }
  const url = par ? await client.buildAuthorizationUrlWithPAR(config, parameters, { DPoP }) : client.buildAuthorizationUrl(config, parameters)
  return client.authorizationCodeGrant(config, await authorize(url), { pkceCodeVerifier: verifier, expectedState: state }, undefined, { DPoP })
}

const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2' }))
const api = 'https://api.example.com/orders'
const request = (token, headers = {}) => new Request(api, { headers: { authorization: `Bearer ${token}`, ...headers } })

await step('client credentials, by each method', async () => {
  for (const how of [client.ClientSecretBasic(t.secret), client.ClientSecretPost(t.secret)]) {
    const tokens = await client.clientCredentialsGrant(await discover('web', undefined, how), { scope })
    assert.equal(tokens.scope, scope)
    const claims = await oauth.validateJwtAccessToken(as, request(tokens.access_token), t.audience)
    assert.equal(claims.client_id, 'web')
  }
  const key = await crypto.subtle.importKey('jwk', t.jwk, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign'])
  const config = await discover('key', undefined, client.PrivateKeyJwt(key))
  for (let i = 0; i < 2; i++) await client.clientCredentialsGrant(config, { scope })
})

await step('code with PKCE, refresh, introspection, revocation', async () => {
  const tokens = await code(web)
  assert.ok(tokens.refresh_token)
  const claims = await oauth.validateJwtAccessToken(as, request(tokens.access_token), t.audience)
  assert.equal(claims.sub, 'alice')
  const next = await client.refreshTokenGrant(web, tokens.refresh_token)
  const about = await client.tokenIntrospection(web, next.access_token)
  assert.equal(about.active, true)
  assert.equal(about.sub, 'alice')
  await client.tokenRevocation(web, next.refresh_token)
  assert.equal((await client.tokenIntrospection(web, next.access_token)).active, false)
  await assert.rejects(client.refreshTokenGrant(web, next.refresh_token), { error: 'invalid_grant' })
})

await step('a public client, whose refresh tokens rotate', async () => {
  const tokens = await code(spa)
  const next = await client.refreshTokenGrant(spa, tokens.refresh_token)
  assert.notEqual(next.refresh_token, tokens.refresh_token)
})

await step('code with PAR', async () => {
  assert.equal((await code(web, { par: true })).scope, scope)
  assert.equal((await code(spa, { par: true })).scope, scope)
})

await step('DPoP, with nonces of the server', async () => {
  const keys = await client.randomDPoPKeyPair('ES256', { extractable: true })
  const DPoP = client.getDPoPHandle(spa, keys)
  const tokens = await code(spa, { par: true, DPoP })
  assert.equal(tokens.token_type, 'dpop')
  const next = await client.refreshTokenGrant(spa, tokens.refresh_token, undefined, { DPoP })
  const { cnf } = JSON.parse(Buffer.from(next.access_token.split('.')[1], 'base64url'))
  assert.equal(cnf.jkt, await DPoP.calculateThumbprint())
  const other = client.getDPoPHandle(spa, await client.randomDPoPKeyPair('ES256'))
  await assert.rejects(client.refreshTokenGrant(spa, next.refresh_token, undefined, { DPoP: other }), { error: 'invalid_grant' })

  // The issuer's own API takes the token with proofs of its key alone.
  const me = new URL('me', issuer)
  const res = await client.fetchProtectedResource(spa, next.access_token, me, 'GET', undefined, undefined, { DPoP })
  assert.equal((await res.json()).subject, 'alice')
  await assert.rejects(client.fetchProtectedResource(spa, next.access_token, me, 'GET', undefined, undefined, { DPoP: other }), { status: 401 })
  await assert.rejects(client.fetchProtectedResource(spa, next.access_token, me, 'GET'), { status: 401 })
})

await step('an API that tells who issues for it', async () => {
  const res = await fetch(new URL('orders', issuer))
  assert.equal(res.status, 401)
  const at = /resource_metadata="([^"]+)"/.exec(res.headers.get('www-authenticate'))[1]
  const about = await oauth.processResourceDiscoveryResponse(issuer, await oauth.resourceDiscoveryRequest(issuer))
  assert.equal(at, new URL('.well-known/oauth-protected-resource', issuer).href)
  assert.deepEqual(about.authorization_servers, [t.issuer])
})

await step('pushed or not, a user may say no', async () => {
  const parameters = { redirect_uri: t.redirect, scope, code_challenge: await client.calculatePKCECodeChallenge(client.randomPKCECodeVerifier()), code_challenge_method: 'S256' }
  for (const url of [client.buildAuthorizationUrl(web, parameters), await client.buildAuthorizationUrlWithPAR(web, parameters)]) {
    const shown = await (await fetch(url)).text()
    const request = unescape(/name="request" value="([^"]+)"/.exec(shown)[1])
    const res = await fetch(new URL('consent', issuer), { method: 'POST', body: new URLSearchParams({ request, decision: 'deny' }), redirect: 'manual' })
    await assert.rejects(client.authorizationCodeGrant(web, new URL(res.headers.get('location')), { pkceCodeVerifier: 'x' }), { error: 'access_denied' })
  }
})

await step('token exchange', async () => {
  const tokens = await code(web)
  const swapped = await client.genericGrantRequest(web, 'urn:ietf:params:oauth:grant-type:token-exchange', {
    subject_token: tokens.access_token, subject_token_type: 'urn:ietf:params:oauth:token-type:access_token', scope, resource: t.other,
  })
  assert.equal(swapped.issued_token_type, 'urn:ietf:params:oauth:token-type:access_token')
  const claims = await oauth.validateJwtAccessToken(as, request(swapped.access_token), t.other)
  assert.equal(claims.sub, 'alice')
})

await step('device', async () => {
  const device = await client.initiateDeviceAuthorization(spa, { scope })
  assert.equal((await sayYes(device.verification_uri_complete)).status, 200)
  const tokens = await client.pollDeviceAuthorizationGrant(spa, device)
  assert.equal(tokens.scope, scope)
})

await step('registration', async () => {
  const config = await client.dynamicClientRegistration(issuer, { redirect_uris: [t.redirect], grant_types: ['authorization_code', 'refresh_token'], token_endpoint_auth_method: 'client_secret_post' }, undefined, { initialAccessToken: t.initial, algorithm: 'oauth2' })
  assert.equal((await code(config)).scope, scope)
})

await step('mutual TLS', async () => {
  // fetch of this platform shows no certificate: a request of node's own does.
  const shown = (url, o) =>
    new Promise((resolve, reject) => {
      const r = https.request(url, { method: o.method, headers: o.headers, cert: t.cert, key: t.key, ca: t.ca }, async (res) => {
        const parts = []
        for await (const part of res) parts.push(part)
        const body = Buffer.concat(parts)
        resolve(new Response(body.length ? body : null, { status: res.statusCode, headers: res.headers }))
      })
      r.on('error', reject)
      r.end(o.body?.toString())
    })
  const config = await client.discovery(issuer, 'tls', { use_mtls_endpoint_aliases: false }, client.TlsClientAuth(), { algorithm: 'oauth2' })
  config[client.customFetch] = shown
  const tokens = await client.clientCredentialsGrant(config, { scope })
  const { cnf } = JSON.parse(Buffer.from(tokens.access_token.split('.')[1], 'base64url'))
  assert.equal(cnf['x5t#S256'], t.print)
  assert.equal((await client.tokenIntrospection(config, tokens.access_token)).cnf['x5t#S256'], t.print)
  const bare = await discover('tls', undefined, client.TlsClientAuth())
  await assert.rejects(client.clientCredentialsGrant(bare, { scope }), { status: 401 })
})

await step('a resource server that is not ours', async () => {
  const app = express()
  app.use(auth({ issuer: t.issuer, jwksUri: t.issuer + '/.well-known/jwks.json', audience: t.audience, strict: true, tokenSigningAlg: 'ES256' }))
  app.get('/orders', requiredScopes(scope), (req, res) => res.json({ sub: req.auth.payload.sub }))
  app.get('/admin', requiredScopes('admin'), (req, res) => res.json({}))
  app.use((err, req, res, next) => res.status(err.status ?? 500).end())
  const server = app.listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address()
  const call = (path, token) => fetch(`http://127.0.0.1:${port}${path}`, { headers: token ? { authorization: `Bearer ${token}` } : {} })
  const { access_token } = await code(web)
  const res = await call('/orders', access_token)
  assert.equal(res.status, 200)
  assert.equal((await res.json()).sub, 'alice')
  assert.equal((await call('/admin', access_token)).status, 403)
  assert.equal((await call('/orders')).status, 401)
  assert.equal((await call('/orders', access_token.slice(0, -4) + 'AAAA')).status, 401)
  server.close()
})

console.log(done.join('\n'))
