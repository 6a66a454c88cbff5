// Verifies an access token by RFC 9068's profile, with a library that knows nothing of the issuer.
import { createRemoteJWKSet, jwtVerify } from 'jose'

const [issuer, audience, token] = process.argv.slice(2)
const keys = createRemoteJWKSet(new URL(issuer + '/.well-known/jwks.json'))
const { payload } = await jwtVerify(token, keys, { issuer, audience, typ: 'at+jwt', requiredClaims: ['jti', 'client_id', 'sub', 'exp', 'iat'] })
console.log(payload.sub)
