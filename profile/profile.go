// Package profile says how the access tokens of an issuer look that does not follow RFC 9068: those of a host's own earlier service,
// made with golang-jwt say, and those of identity providers whose claims have names of their own. A Profile goes into
// apitoken.Trusted, which names the issuer and what its tokens may do:
//
//	apitoken.Trusted{Issuer: "https://tenant.eu.auth0.com/", Profile: profile.Auth0(),
//		Keys: remote.Discover("https://tenant.eu.auth0.com/", "", nil), Scopes: apitoken.Scopes{"orders"}}
//
// Without a Profile an issuer's tokens are RFC 9068's, and nothing else is taken. With one the header is still read strictly, a name
// that comes twice in an object is refused, and a key verifies under its one algorithm alone. The revocation rules of the service reach these tokens: see [Profile.SameUsers].
//
// The package holds data. It is a leaf: apitoken imports it.
package profile

import "time"

// Profile says how the tokens of one issuer look. Claims are named as they are written; a name that begins with "/" is a JSON
// Pointer (RFC 6901), for a claim inside another. The zero Profile is near RFC 9068: typ JWT or none, jti optional.
type Profile struct {
	// Types are the values of typ in the header that are taken; "" is a header without one. nil: "JWT" and "". Tokens whose typ
	// is not here are not this issuer's: an issuer with the iss of another may be trusted beside it if their Types differ.
	Types []string
	// Iss are the values of iss that its tokens have; "" is a token without one. nil: Trusted.Issuer, which names the issuer in
	// Tokens, rules and events in any case. It lets a service take the tokens that it made itself before, under the same iss.
	Iss []string
	// Keys verify its tokens, in place of Trusted.Keys. Several may have no KID: each is tried.
	Keys []Key

	Subject  []string // claims with the subject, the first that is there counts: text, or a whole number; nil: "sub"
	Client   []string // likewise with the client; nil: "client_id", "azp", "cid"
	ID       []string // likewise with the token's ID; nil: "jti". Where none is there, a digest of the token stands for it
	Audience []string // likewise with the audience, a text or a list; nil: "aud"
	Scopes   []string // claims with scopes, all of them count: a text with spaces between, or a list; nil: "scope", "scp"
	Roles    []string // claims with roles or groups, likewise; nil: "roles"

	// RoleScopes are the roles that are taken, and the scopes that each brings, within Trusted.Scopes. Token.Roles names them.
	// Others are dropped.
	RoleScopes map[string][]string
	// Require are claims that must be there with this text.
	Require map[string]string
	// Refuse are claims that must not be there. nil: "nonce", "at_hash" and "c_hash", which ID tokens have: what a client was told of
	// a user opens no API.
	Refuse []string
	// NoClient takes tokens that name no client.
	NoClient bool

	// Map, if it is set, changes what was read of a token whose signature is good: claims is its payload, to has what this Profile
	// says. An error refuses the token. It runs once for a token that stays in the cache, so that it must depend on nothing else
	// than claims, do no I/O, and not change or keep claims. A panic refuses the token.
	Map func(claims []byte, to *Mapped) error

	// Until is when the last token is taken, whatever it says. Zero: no end.
	Until time.Time
	// SameUsers says that the issuer is the service itself, as it was before: its subjects, clients and roles are the service's.
	// A rule on a subject, session of a subject, client, role or token then reaches what it names of both, and Token.Client is set.
	// Without it they are another's names, which rules reach by Target.OfIssuer. Everything reaches both.
	SameUsers bool

	// InsecureNoAudience takes tokens without an audience: for an issuer whose keys sign for this service alone.
	InsecureNoAudience bool
	// InsecureNoExpiry takes tokens without exp, until Until, which is then required.
	InsecureNoExpiry bool
	// InsecureNoIssuedAt takes tokens without iat: nobody can tell when they were made, so that each rule on their subject, client
	// or role refuses them, whenever it was written. It requires Until.
	InsecureNoIssuedAt bool
	// InsecureShortSecrets takes secrets that are shorter than their MAC: who has a token may find such a secret by trying, and
	// then makes tokens.
	InsecureShortSecrets bool
}

// Key verifies tokens under one algorithm.
type Key struct {
	KID string // as in the header; empty: for tokens without one
	Alg string // JWA name: HS256, HS384, HS512, RS256, …, PS256, …, ES256, …, EdDSA
	// Key is an *rsa.PublicKey, an *ecdsa.PublicKey or an ed25519.PublicKey; for HMAC the secret, a []byte at least as long as the
	// MAC: 32, 48 or 64 bytes.
	Key any
}

// Mapped is what a token is taken for.
type Mapped struct {
	Subject, Client, ID string
	Scopes, Roles       []string
}

// GolangJWT is the profile of tokens that the host made itself with github.com/golang-jwt/jwt/v5 and its RegisteredClaims: neither
// kid, iss, aud, jti nor client are needed, the subjects are the service's own. exp and iat are. After until none is taken. Keys
// are the old secret under HS256, say, or the public half of the old key. Where the old tokens have an iss, set Iss to it.
func GolangJWT(until time.Time, keys ...Key) *Profile {
	return &Profile{Iss: []string{""}, Keys: keys, Refuse: []string{}, NoClient: true, Until: until, SameUsers: true, InsecureNoAudience: true}
}

// Keycloak is the profile of access tokens of a Keycloak realm. Trusted.Issuer is the realm's URL, such as
// https://kc.example.com/realms/shop. A realm puts an API into aud only if an audience mapper does. RoleScopes names realm roles; for
// those of a client add "/resource_access/CLIENT/roles" to Roles.
func Keycloak() *Profile {
	return &Profile{Client: []string{"azp", "client_id"}, Scopes: []string{"scope"}, Roles: []string{"/realm_access/roles"},
		Require: map[string]string{"typ": "Bearer"}, Refuse: []string{"at_hash", "c_hash"}} // nonce was in access tokens of older versions
}

// Auth0 is the profile of access tokens of an Auth0 tenant, in both of its token dialects. Trusted.Issuer ends with a slash, as
// https://tenant.eu.auth0.com/; the API's identifier is the audience.
func Auth0() *Profile {
	return &Profile{Types: []string{"JWT", "at+jwt"}, Client: []string{"azp", "client_id"}, Scopes: []string{"scope", "permissions"}}
}

// Okta is the profile of access tokens of an Okta authorization server. Trusted.Issuer is such as
// https://dev-1.okta.com/oauth2/default. The tokens of the org's own server, without /oauth2/… behind it, are for Okta alone.
func Okta() *Profile {
	return &Profile{Client: []string{"cid"}, Scopes: []string{"scp"}, Roles: []string{"groups"}}
}

// EntraID is the profile of access tokens of Microsoft Entra ID. Trusted.Issuer is https://login.microsoftonline.com/TENANT/v2.0, or for
// tokens of version 1 https://sts.windows.net/TENANT/, whose metadata are found at the former without /v2.0. The subject is oid, the
// same for all applications of the tenant. RoleScopes names app roles and the IDs of groups.
func EntraID() *Profile {
	return &Profile{Subject: []string{"oid"}, Client: []string{"azp", "appid"}, ID: []string{"uti"}, Scopes: []string{"scp"}, Roles: []string{"roles", "groups"}}
}

// Cognito is the profile of access tokens of an Amazon Cognito user pool. Trusted.Issuer is
// https://cognito-idp.REGION.amazonaws.com/POOL. They have no aud: Trusted.Audiences are the IDs of the app clients whose tokens are
// taken.
func Cognito() *Profile {
	return &Profile{Client: []string{"client_id"}, Audience: []string{"client_id"}, Scopes: []string{"scope"}, Roles: []string{"cognito:groups"},
		Require: map[string]string{"token_use": "access"}}
}
