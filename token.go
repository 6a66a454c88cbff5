// The public types and interfaces: Issuer, Validator, Revoker; Token, also as golang-jwt/jwt/v5 has it; Grant, Secret, Credential; and
// the contexts that carry them.

package apitoken

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Issuer is what issues tokens. [Service] is the default: JWT access tokens, opaque refresh tokens.
type Issuer interface {
	// Issue opens a grant and returns its first tokens, after it is durable.
	Issue(ctx context.Context, r Request) (*Issued, error)
	// Refresh trades a refresh token for the next tokens of its grant. The immediately previous
	// one, presented again inside the grace window, gets the same answer; an older one ends the
	// grant: ErrInvalidGrant. So does a genuine one that another authenticated client presents: it has leaked.
	Refresh(ctx context.Context, r RefreshRequest) (*Issued, error)
	// Exchange trades a valid token for a narrower one (RFC 8693). Ending the first ends the second.
	Exchange(ctx context.Context, r ExchangeRequest) (*Issued, error)
}

// Validator says whether a credential is good. Everything that guards something takes one.
type Validator interface {
	// Validate returns what the token says, or an error: ErrInvalidToken (ErrExpired, ErrRevoked
	// among them), ErrNoToken, ErrLimited, or ErrUnavailable when it cannot know. It does no I/O for
	// access tokens and known API keys.
	Validate(ctx context.Context, c Credential) (Token, error)
}

// Revoker ends tokens.
type Revoker interface {
	// Revoke refuses what target names from now on: in this process when it returns, in every
	// other one within its bound. A target that is unknown is not an error, unless it was narrowed
	// by OwnedBy or HeldBy: then ErrNotFound. ErrUnavailable: in force here, and this process goes
	// on trying to write it; others may not know it yet.
	Revoke(ctx context.Context, target Target, reason string) error
}

// Token is what a valid token says. It is a small immutable value, free to copy and to share; the
// zero Token holds nothing: Allows is false, Check and Recheck refuse, and every other method but IsZero and
// LogValue panics, so that a handler that lost its middleware cannot take "" for a subject.
type Token struct {
	d     *tokenData
	fresh Freshness
}

// tokenData is shared by all copies of a Token and never changes after it was made.
type tokenData struct {
	ends *atomic.Int64 // of an API key, Unix ms, 0: never; moves when the key is rotated after the Token was made
	TokenSpec
	held    heldScopes
	claim   []byte         // the host's own claims, a JSON object, or nil
	from    *rules.Subject // what rules see of it: set by our validator, for Exchange
	use     *usage.Counter // set by a service's validator
	counted bool           // an API key with MaxUses
	by      *JWTValidator  // whose verdict it is; nil for what NewToken made
}

// TokenSpec is the content of a Token, for those who make Tokens: validators of other formats, and tests.
type TokenSpec struct {
	APIKey    bool   // an API key rather than a JWT
	ID        string // jti, or the API key's ID
	Issuer    string // iss
	Subject   string // sub; a client's own tokens carry its ID, which never equals a user's
	Client    string // client_id
	Grant     string // sid
	Audiences []string
	Scopes    Scopes
	Roles     []string
	Actors    []string // act (RFC 8693 §4.1): who acts for Subject, nearest first
	IssuedAt  time.Time
	ExpiresAt time.Time // zero only for API keys without expiry
	Binding   string    // cnf thumbprint (RFC 8705, 9449), empty for bearer tokens
	Claims    any       // the host's own claims: marshals to a JSON object; nil: none
}

// Grant is one authorization of a client for a subject: a session. It holds no secret.
type Grant struct {
	ID, Subject, Client string
	Scopes              Scopes
	Roles               []string
	Created, Expires    time.Time
	LastUsed            time.Time // to within a minute; of its tokens and its refreshes
	LastAddress         string
	Address, UserAgent  string // where it was opened from
	Uses                uint64
	UsedScopes          Scopes // as Usage.Scopes; in what is listed only
}

// NewToken makes a Token from s, which it copies. It fails with ErrInvalidRequest when Claims do not
// marshal to a JSON object or hold a name that is reserved; it checks nothing else.
func NewToken(s TokenSpec) (_ Token, failed error) {
	defer tell(&failed)
	claims, err := marshalClaims(s.Claims)
	if err != nil {
		return Token{}, err
	}
	s.Audiences = slices.Clone(s.Audiences)
	s.Scopes = slices.Clone(s.Scopes)
	s.Roles = slices.Clone(s.Roles)
	s.Actors = slices.Clone(s.Actors)
	s.Claims = nil
	return makeToken(s, claims), nil
}

// makeToken takes over all that s and claims refer to.
func makeToken(s TokenSpec, claims []byte) Token {
	d := tokenOf(s, claims)
	return Token{d: &d}
}

func tokenOf(s TokenSpec, claims []byte) tokenData {
	return tokenData{TokenSpec: s, held: prepareScopes(s.Scopes), claim: claims}
}

// marshalClaims makes the JSON object of the host's own claims; nil for none.
func marshalClaims(v any) ([]byte, error) {
	doc, err := jws.HostClaims(v)
	return doc, public(err)
}

// spec is what t says. It is where a handler ends that lost its guard.
func (t Token) spec() *TokenSpec {
	if t.d == nil {
		panic("apitoken: the zero Token says nothing: no guard has put one into this context")
	}
	return &t.d.TokenSpec
}

// ID is the jti of an access token, or the ID of an API key.
func (t Token) ID() string { return t.spec().ID }

// IsAPIKey reports whether the caller presented an API key: opaque, long-lived, shown once. Everything else is an access token,
// a JWT.
func (t Token) IsAPIKey() bool { return t.spec().APIKey }

// Issuer is iss. A principal is Issuer and Subject together.
func (t Token) Issuer() string { return t.spec().Issuer }

// Subject is sub: a user, or the client itself where IsClient is true.
func (t Token) Subject() string { return t.spec().Subject }

// Client is client_id.
func (t Token) Client() string { return t.spec().Client }

// Grant is the session that the token belongs to (sid); empty for API keys.
func (t Token) Grant() string { return t.spec().Grant }

// Audiences returns a fresh copy of aud.
func (t Token) Audiences() []string { return slices.Clone(t.spec().Audiences) }

// Scopes returns a fresh copy of what the token holds.
func (t Token) Scopes() Scopes { return slices.Clone(t.spec().Scopes) }

// Roles returns a fresh copy of the roles that were expanded into the scopes. They inform; decisions read scopes.
func (t Token) Roles() []string { return slices.Clone(t.spec().Roles) }

// Actors returns a fresh copy of act: who acts for Subject, nearest first.
func (t Token) Actors() []string { return slices.Clone(t.spec().Actors) }

// IssuedAt is iat, to the second.
func (t Token) IssuedAt() time.Time { return t.spec().IssuedAt }

// ExpiresAt is exp, to the second; zero only for API keys without expiry.
func (t Token) ExpiresAt() time.Time { return t.spec().ExpiresAt }

// Binding is the thumbprint of the key or certificate that the token is bound to (cnf), empty for a bearer token.
// It was proved before the Token was returned.
func (t Token) Binding() string { return t.spec().Binding }

// IsClient reports that the token is a client's own: no user stands behind it.
func (t Token) IsClient() bool {
	s := t.spec()
	return s.Client != "" && s.Subject == s.Client
}

// IsZero reports that t is the zero Token.
func (t Token) IsZero() bool { return t.d == nil }

// Allows reports whether the token covers all the scopes, by the hierarchy of [Scope.Covers].
// It takes at least one, so that an empty list is never "allowed".
func (t Token) Allows(scope Scope, more ...Scope) bool {
	if t.d == nil || !t.d.held.allows(scope) {
		return false
	}
	for _, s := range more {
		if !t.d.held.allows(s) {
			return false
		}
	}
	return true
}

// Check returns nil or ErrInsufficientScope with Needs set. Every adapter decides by it.
func (t Token) Check(r Requirement) error {
	if t.d != nil && t.d.held.meets(r) {
		return nil
	}
	return &Error{Code: ErrInsufficientScope, Needs: r}
}

// Claims decodes the host's own claims into v, as json.Unmarshal does. Where v is a jwt.Claims of golang-jwt, a struct that embeds
// jwt.RegisteredClaims say, it is given what RegisteredClaims returns as well. No other reserved claim is among them; without
// claims any other v stays as it is.
func (t Token) Claims(v any) error {
	t.spec()
	if c, ok := v.(jwt.Claims); ok {
		doc, err := t.allClaims()
		if err == nil {
			_, err = jws.DecodeV5(doc, c)
		}
		return err
	}
	if len(t.d.claim) == 0 {
		return nil
	}
	return json.Unmarshal(t.d.claim, v)
}

// Freshness says how old the view of revocations was when this call of Validate decided.
func (t Token) Freshness() Freshness { return t.fresh }

// Recheck asks whoever validated t again: not expired, no rule against it, within the bound on staleness. It verifies no
// signature and asks for no proof. For what lasts longer than a request, whatever validators stand around the one that
// answered. Of a Token that NewToken made only the expiry is known.
func (t Token) Recheck(ctx context.Context) error {
	if t.d != nil && t.d.by != nil {
		return t.d.by.Recheck(ctx, t)
	}
	return t.recheck()
}

// recheck is Recheck for calls that count their refusals themselves.
func (t Token) recheck() error {
	switch {
	case t.d == nil:
		return fail(ErrInvalidToken, "no token")
	case t.d.by != nil:
		return t.d.by.recheck(t)
	case !t.d.ExpiresAt.IsZero() && !time.Now().Before(t.d.ExpiresAt):
		return fail(ErrExpired, "exp has passed")
	}
	return nil
}

// LogValue is the IDs of t, no claims.
func (t Token) LogValue() slog.Value {
	if t.d == nil {
		return slog.StringValue("none")
	}
	return slog.GroupValue(
		slog.String("kind", opaque.TokenKind(t.d.APIKey)), slog.String("id", t.d.ID), slog.String("subject", t.d.Subject),
		slog.String("client", t.d.Client), slog.String("grant", t.d.Grant))
}

// Format prints t as its LogValue does: a Token in a log line shows no claims.
func (t Token) Format(f fmt.State, _ rune) { io.WriteString(f, t.LogValue().String()) }

type tokenKey struct{}

// FromContext returns the caller's Token, or the zero Token if there is none.
func FromContext(ctx context.Context) Token {
	if c, ok := ctx.(*tokenContext); ok { // what Authorize made: no walk
		return c.token
	}
	t, _ := ctx.Value(tokenKey{}).(Token)
	return t
}

// NewContext returns a context that carries t. Adapters call it after Validate.
func NewContext(ctx context.Context, t Token) context.Context {
	if c, ok := ctx.(*originContext); ok && c.taken.CompareAndSwap(false, true) {
		c.next = tokenContext{Context: c, token: t}
		return &c.next
	}
	return &tokenContext{Context: ctx, token: t}
}

// tokenContext is a context.WithValue of one fixed key that saves boxing the Token.
type tokenContext struct {
	context.Context
	token Token
}

func (c *tokenContext) Value(key any) any {
	if key == (tokenKey{}) {
		return c.token
	}
	return c.Context.Value(key)
}

// Secret is a credential in clear: an access or refresh token, an API key, a client secret. It
// prints, logs and marshals as "[redacted]", also as a field of someone else's struct (a string
// type would not: fmt reads unexported fields past their methods).
type Secret struct{ text *secretText }

// secretText holds the text in a function: what prints or compares the insides of values, a test's dump among them, follows
// pointers into unexported fields, and stops at a function.
type secretText struct{ reveal func() string }

const redacted = "[redacted]"

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{&secretText{func() string { return s }}} }

// Reveal returns the text, "" for the zero Secret. It is the only way to it.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return s.text.reveal()
}

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalText makes JSON and other encodings hold "[redacted]".
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// IsZero reports that there is no secret.
func (s Secret) IsZero() bool { return s.text == nil }

// Credential is what a caller presented: a token and, for bound tokens, the proof that came with it.
// A bound token without its proof is refused. The zero Credential means that none came.
type Credential struct {
	Token string
	// DPoP is the proof of RFC 9449, for the request Method URL. A Credential with DPoP set came
	// under the DPoP scheme; one without it under Bearer.
	DPoP, Method, URL string
	// CertSHA256 is the SHA-256 of the client's TLS certificate (RFC 8705), if it sent one.
	CertSHA256 [32]byte

	unproved bool // asked about by an introspection: whoever uses the token proves its binding elsewhere
	anywhere bool // the issuer itself looks at a token of its own, whatever audience that is for
}

// Bearer is the Credential of a bare token (RFC 6750).
func Bearer(token string) Credential { return Credential{Token: token} }

// IsZero reports that no token came.
func (c Credential) IsZero() bool { return c.Token == "" && c.DPoP == "" }

// Format keeps the credential out of logs.
func (c Credential) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (c Credential) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText makes JSON and other encodings hold "[redacted]".
func (c Credential) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// What tokens are bound to, and how a request proves it.

// BindDPoP is the Binding of tokens to the DPoP key with this RFC 7638 thumbprint (RFC 9449 §6.1).
func BindDPoP(thumbprint string) string { return bindDPoP + thumbprint }

// BindCertificate is the Binding of tokens to the TLS client certificate with this SHA-256 (RFC 8705 §3.1).
func BindCertificate(sha256 [32]byte) string {
	return bindCert + base64.RawURLEncoding.EncodeToString(sha256[:])
}

const (
	bindDPoP = "jkt:"
	bindCert = "x5t#S256:"
)

func isDPoP(binding string) bool { return strings.HasPrefix(binding, bindDPoP) }

// checkBinding refuses what could never be proved.
func checkBinding(b string) error {
	if b == "" {
		return nil
	}
	print, ok := strings.CutPrefix(b, bindDPoP)
	if !ok {
		print, ok = strings.CutPrefix(b, bindCert)
	}
	if raw, err := base64.RawURLEncoding.Strict().DecodeString(print); !ok || err != nil || len(raw) != 32 {
		return fail(ErrInvalidRequest, "a Binding is jkt: or x5t#S256: and the base64url of 32 bytes; see BindDPoP and BindCertificate")
	}
	return nil
}

const maxSubject = 255 // bytes

func checkSubject(sub string) error {
	if sub == "" || len(sub) > maxSubject || !text.PlainText(sub) {
		return fail(ErrInvalidRequest, "a subject is 1 to 255 bytes of UTF-8 without control characters")
	}
	return nil
}

// Origin is where a request came from. Adapters put it into the context, once, before anything else.
type Origin struct {
	Address   netip.Addr `json:"address,omitzero"` // IsValid reports whether it is known: fmt prints an unknown one as "invalid IP"
	UserAgent string     `json:"user_agent,omitempty"`
	RequestID string     `json:"request_id,omitempty"`
}

type originKey struct{}

// originContext is a context.WithValue of one fixed key that saves boxing on the hot path. It has room for the context of the
// token that mostly comes next, which is this one's child and never seen from it.
type originContext struct {
	context.Context
	origin Origin
	taken  atomic.Bool
	next   tokenContext
}

func (c *originContext) Value(key any) any {
	if key == (originKey{}) {
		return &c.origin
	}
	return c.Context.Value(key)
}

// WithOrigin returns a context whose events carry o: for one request, since the first Token that is put into it stays in memory
// as long as it does. Its strings are cut to 256 bytes when they are kept, and what can
// not be shown in them is escaped.
func WithOrigin(ctx context.Context, o Origin) context.Context {
	return &originContext{Context: ctx, origin: o}
}

func originOf(ctx context.Context) Origin {
	if c, ok := ctx.(*originContext); ok {
		return c.origin
	}
	if o, ok := ctx.Value(originKey{}).(*Origin); ok {
		return *o
	}
	return Origin{}
}

// addressOf is the address of ctx's Origin, without copying the rest: the zero one if there is none.
func addressOf(ctx context.Context) *netip.Addr {
	if c, ok := ctx.(*originContext); ok {
		return &c.origin.Address
	}
	if o, ok := ctx.Value(originKey{}).(*Origin); ok {
		return &o.Address
	}
	return nil
}

// OriginOf returns what WithOrigin put into ctx, or one of its parents.
func OriginOf(ctx context.Context) Origin { return originOf(ctx) }

type actorKey struct{}

// WithActor returns a context whose events carry actor, where no Token in it says who acts.
func WithActor(ctx context.Context, actor string) context.Context {
	return withPrincipal(ctx, rules.Principal{Subject: actor})
}

func withPrincipal(ctx context.Context, actor rules.Principal) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// Freshness is how far the view of revocations reaches, and its age: the time since the request of the last complete
// answer was sent, by the greater of the monotonic and the wall clock.
type Freshness struct {
	Position store.Position
	Age      time.Duration
	Stale    bool // past MaxStaleness; a Token that says so was let through by InsecureServeStale
}

// For programs that use github.com/golang-jwt/jwt/v5 already: their claims types, their parser's place, their keys.

// RegisteredClaims is what t says by the registered claims of RFC 7519 §4.1. NotBefore is nil: it has passed. ExpiresAt is nil for
// API keys without expiry.
func (t Token) RegisteredClaims() jwt.RegisteredClaims {
	s := t.spec()
	c := jwt.RegisteredClaims{Issuer: s.Issuer, Subject: s.Subject, Audience: t.Audiences(), ID: s.ID}
	if !s.ExpiresAt.IsZero() {
		c.ExpiresAt = jwt.NewNumericDate(s.ExpiresAt)
	}
	if !s.IssuedAt.IsZero() {
		c.IssuedAt = jwt.NewNumericDate(s.IssuedAt)
	}
	return c
}

// allClaims is the JSON object of the registered claims and the host's own, whose names differ.
func (t Token) allClaims() ([]byte, error) {
	return jws.RegisteredJSON(t.RegisteredClaims(), t.d.claim)
}

// ParseWithClaims takes the place of jwt.ParseWithClaims: v decides whether the credential is good, by everything that
// [Validator.Validate] checks, and claims is filled from it, a jwt.MapClaims or a pointer to a struct that embeds
// jwt.RegisteredClaims. There is no Keyfunc and there are no options: the validator knows its keys, issuers, audiences and clocks.
// A Validate method of claims' own (jwt.ClaimsValidator) is called last.
//
// The error is v's, and one of jwt's own to errors.Is: jwt.ErrTokenExpired, jwt.ErrTokenInvalidClaims, jwt.ErrTokenMalformed or
// jwt.ErrTokenUnverifiable. The token is nil then, and claims is as it was, unless only claims' own Validate refused.
//
// Every member of an access token of ours is there, scope and client_id too. Of what is none, an API key or a token of an issuer
// that is not Own, the claims are those of [Token.Claims], since its scope is worth only what [Token.Scopes] says; the *jwt.Token
// has neither Method, Header nor Signature then.
func ParseWithClaims(ctx context.Context, v Validator, c Credential, claims jwt.Claims) (*jwt.Token, error) {
	if claims == nil {
		return nil, fail(ErrInvalidRequest, "ParseWithClaims needs claims to fill")
	}
	t, err := v.Validate(ctx, c)
	if err == nil && t.IsZero() {
		err = fail(ErrInvalidToken, "the validator returned no token")
	}
	if err != nil {
		return nil, jws.V5Error(err, nil)
	}

	out := &jwt.Token{Raw: c.Token, Header: map[string]any{}, Valid: true}
	var doc []byte
	if t.d.by != nil && t.d.by.isJWT(t) {
		doc, err = jws.SplitV5(c.Token, out)
	} else {
		doc, err = t.allClaims()
	}
	if err == nil {
		out.Claims, err = jws.DecodeV5(doc, claims)
	}
	if err != nil {
		err = &Error{Code: ErrInvalidToken, Detail: "its claims do not fit the type that they are to fill", Cause: err}
		return nil, jws.V5Error(err, jwt.ErrTokenMalformed)
	}
	if own, ok := out.Claims.(jwt.ClaimsValidator); ok {
		if err := own.Validate(); err != nil {
			refused := &Error{Code: ErrInvalidToken, Detail: "the host's own Validate of the claims", Cause: err}
			return nil, jws.V5Error(refused, errors.Join(jwt.ErrTokenInvalidClaims, err))
		}
	}
	return out, nil
}
