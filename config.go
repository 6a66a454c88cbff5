// Config and all that it is made of, its defaults and its checks.

package apitoken

import (
	"context"
	"log/slog"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store"
)

// Store is where a service keeps its records: an alias, so that this package's readers find it.
type Store = store.Store

// Config configures New. Required fields have no silent default.
type Config struct {
	Issuer   string // required: iss, an https URL, or http on loopback, without query and fragment
	Audience string // required: aud of what is issued here, and accepted here
	Store    Store  // required; New's caller closes it, after the Service
	// Seal encrypts signing keys at rest. It is required, unless InsecureKeysInStore says that
	// whoever reads the store may forge tokens.
	Seal Sealer
	// InsecureKeysInStore without Seal keeps the keys in clear. Beside Seal it is the way from there: keys that lie in clear are
	// taken, though whoever can write the store may have put them there, and sealed at start. Set both in each process, one after the
	// other, then take InsecureKeysInStore away: without it keys in clear are refused. Processes that still run without Seal go on
	// meanwhile; they do not start again, and write no secret in clear. Keys that lay in clear are in copies of the store from then:
	// end with [SigningKeys.RotateSecrets].
	InsecureKeysInStore bool

	// FAPI makes the service keep to the FAPI 2.0 Security Profile, and so package oauthhttp over it: clients prove themselves by
	// private_key_jwt or a certificate, assertions are for the issuer alone, every access token is bound to a DPoP key or a
	// certificate, and all signatures are PS256, ES256 or EdDSA. New, and oauthhttp.New, refuse what contradicts it. Tokens that the
	// host issues without a client are held to it too, so that there are no cookie sessions; API keys are none of its tokens.
	FAPI bool

	Prefix     string // of opaque tokens: a letter, then letters or digits, 2 to 16; empty: "at"
	FirstParty string // client_id of tokens issued without a Client; empty: "first-party"
	Algorithm  string // JWA name: ES256, EdDSA, RS256, PS256, HS256; empty: "ES256"
	// AudienceAlgorithms gives audiences, of Audience and Audiences, signing keys of their own, of the algorithm that it names: for a
	// service that reads no other, or so that who has one audience's key makes no tokens for another. They sign what is for that
	// audience alone, and our validators take nothing else from them (others go by aud); the keys of Algorithm sign the rest, and
	// stand in until a new one can be known to every validator. A token of such a key may still be exchanged for one for another
	// audience, by a client that may. All rotate, are published and withdrawn alike. An audience that no
	// process names any more is signed for by the common keys, and its last key retires when its successor would be due.
	AudienceAlgorithms map[string]string
	KeyRotation        time.Duration // zero: 90 days; negative: only by call
	Lifetimes          Lifetimes
	Limits             Limits
	// Audiences may be asked for besides Audience when a token is issued. They are for other
	// services; what is accepted here is Audience and Validation.Audiences.
	Audiences []string
	Scopes    map[Scope]string  // known scopes and their descriptions; nil: any well-formed one
	Roles     map[string]Scopes // at first start; later changes by SetRole
	Trust     []Trusted         // other issuers whose tokens are taken
	// KeyHashes are the forms of API keys that APIKeys.Import took over from another program, by names of the host's.
	KeyHashes  map[string]keyhash.Form
	Validation Validation
	Refresh    RefreshPolicy
	// MayContinue is asked whether the subject may go on wherever it gets something new for what it has: at each refresh,
	// redemption and exchange, for tokens under a grant, and when a caller makes or rotates an API key. Where nothing is listed
	// yet, g has no ID. It is asked before anything is spent, and for users alone. An error refuses; one that is ErrUnavailable or a context's tells the caller to try again, and so does a call
	// that panics or takes longer than five seconds. nil: always.
	MayContinue func(ctx context.Context, g Grant) error
	Sinks       []Sink
	// KeepEvents is how long audit events stay in the store. Zero: for ever. Events that a Sink has not got yet are not removed.
	KeepEvents time.Duration
	Logger     *slog.Logger     // nil: silent
	Now        func() time.Time // nil: time.Now. Expiry is judged by it
	// Restored says what to do when the store is not the one that this service last wrote: a
	// restored backup, a failover that may have lost its tail. Zero: New fails and says so.
	Restored RestoreChoice
}

// RestoreChoice is the explicit answer to a store whose history changed: revocations that were
// acknowledged after the backup was taken are not in it.
type RestoreChoice int8

// What [New] does with a store that was put back.
const (
	RefuseRestored   RestoreChoice = iota // fail
	RevokeOnRestore                       // end every grant, token and API key made before now
	ReplayedRestored                      // the host replays the lost revocations itself, before it serves
)

// Limits bound what one subject may have, at most 500. Zero: no limit. They are exact, also when logins
// race, as long as every process on a store has them or none has. A limit that is set on a store in use
// counts what is there: sessions are read through once at the start of each process, for as long as
// sessions from before may live. What a process without limits makes beside others is counted within a week.
type Limits struct {
	APIKeysPerSubject int
	GrantsPerSubject  int // beyond it the longest idle one ends
}

// Lifetimes bound how long tokens live. Zero fields take the default in brackets.
type Lifetimes struct {
	Access    time.Duration // [5m] of an access token
	MaxAccess time.Duration // [1h] what a request may ask for
	Grant     time.Duration // [30 days] a refreshed token never outlives its grant
	Idle      time.Duration // [none] a grant not refreshed for so long ends
	APIKey    time.Duration // [none] the longest an API key may live
}

// RefreshPolicy says how refresh tokens rotate (RFC 9700 §4.14).
type RefreshPolicy struct {
	// Grace is how long the immediately previous refresh token gets the same answer again, so that a
	// lost response or a second tab ends no session. Zero: 10 s; at most 60 s. Negative: none, every second use ends the
	// session. Of parallel uses one is answered then, and those that it overtakes get ErrInvalidGrant, which ends nothing; a
	// rotation of which the caller was not answered, because the store did not or because it had gone, may be repeated once
	// within 60 s. This costs a second write for each rotation.
	Grace time.Duration
	// RotateConfidential rotates the tokens of confidential and of sender-bound clients too. They are
	// useless without the client's credential or key, so that rotation only adds ways to lose them
	// (FAPI 2.0 §5.3.2.1): where there is a Grace at all, they may ask again until they have used the answer. Public clients'
	// unbound tokens always rotate.
	RotateConfidential bool
}

const (
	defaultAccess    = 5 * time.Minute
	defaultMaxAccess = time.Hour
	defaultGrant     = 30 * 24 * time.Hour
	defaultRotation  = 90 * 24 * time.Hour
	defaultStaleness = 10 * time.Second
	defaultGrace     = 10 * time.Second
	maxGrace         = time.Minute
	maxSkew          = time.Minute
	maxGrant         = 10 * 365 * 24 * time.Hour
	startTimeout     = 20 * time.Second
)

var (
	prefixShape = regexp.MustCompile(`^[a-z][a-z0-9]{1,15}$`)
	nameShape   = regexp.MustCompile(`^[\x21\x23-\x5B\x5D-\x7E]{1,255}$`) // NQCHAR of RFC 6749 appendix A
)

// check fills defaults and refuses what is dangerous or contradictory.
func (c *Config) check() error {
	if why := issuers.CheckName(c.Issuer); why != "" {
		return wrong("Issuer", "%s", why)
	}
	if c.Audience == "" {
		return wrong("Audience", "is required: tokens without an audience are good everywhere")
	}
	for _, a := range append([]string{c.Audience}, c.Audiences...) {
		if !nameShape.MatchString(a) {
			return wrong("Audience", "%q is not 1 to 255 printable ASCII characters without space, quote and backslash", a)
		}
	}
	if isNil(c.Store) {
		return wrong("Store", "is required; boltstore.Open makes one in a file, memstore.New one in memory")
	}
	if c.Seal != nil && isNil(c.Seal) {
		return wrong("Seal", "is a nil %T: was its error looked at?", c.Seal)
	}
	if c.Seal == nil && !c.InsecureKeysInStore {
		return wrong("Seal", "is required, or InsecureKeysInStore must say that whoever reads the store may sign tokens; KeyFile makes a sealer in a file")
	}
	if c.Prefix == "" {
		c.Prefix = "at"
	}
	if !prefixShape.MatchString(c.Prefix) {
		return wrong("Prefix", "%q is not a letter and 1 to 15 letters or digits, all lower case", c.Prefix)
	}
	if c.FirstParty == "" {
		c.FirstParty = "first-party"
	}
	if !nameShape.MatchString(c.FirstParty) {
		return wrong("FirstParty", "%q is no client_id", c.FirstParty)
	}
	if c.Algorithm == "" {
		c.Algorithm = "ES256"
	}
	if err := checkAlgorithm("Algorithm", c.Algorithm); err != nil {
		return err
	}
	c.AudienceAlgorithms = maps.Clone(c.AudienceAlgorithms)
	for audience, alg := range c.AudienceAlgorithms {
		if audience != c.Audience && !slices.Contains(c.Audiences, audience) {
			return wrong("AudienceAlgorithms", "%q is neither Audience nor one of Audiences", audience)
		}
		if err := checkAlgorithm("AudienceAlgorithms", alg); err != nil {
			return err
		}
		if alg == "HS256" || c.Algorithm == "HS256" {
			return wrong("AudienceAlgorithms", "HS256 has one secret for issuing and for checking: it is for one process and one audience")
		}
	}
	if c.KeyRotation == 0 {
		c.KeyRotation = defaultRotation
	}
	if err := c.checkFAPI(); err != nil {
		return err
	}
	if err := c.checkLifetimes(); err != nil {
		return err
	}
	if c.Limits.APIKeysPerSubject < 0 || c.Limits.GrantsPerSubject < 0 {
		return wrong("Limits", "must not be negative")
	}
	if max(c.Limits.APIKeysPerSubject, c.Limits.GrantsPerSubject) > quota.MaxLimit {
		return wrong("Limits", "over %d", quota.MaxLimit)
	}
	for s := range c.Scopes {
		if !s.wellFormed() {
			return wrong("Scopes", "%q is no scope (RFC 6749 §3.3)", s)
		}
	}
	for role, scopes := range c.Roles {
		if err := c.checkRole(role, scopes); err != nil {
			return wrong("Roles", "%s", detailOf(err))
		}
	}
	switch {
	case c.Refresh.Grace == 0:
		c.Refresh.Grace = defaultGrace
	case c.Refresh.Grace < 0:
		c.Refresh.Grace = 0
	case c.Refresh.Grace > maxGrace:
		return wrong("Refresh.Grace", "%s is over %s: a stolen token would be good for as long", c.Refresh.Grace, maxGrace)
	}
	if err := c.Validation.check("Validation"); err != nil {
		return err
	}
	if err := checkTrust(c.Trust, c.Issuer); err != nil {
		return err
	}
	if err := apikey.CheckForms(c.KeyHashes); err != nil {
		return public(err)
	}
	names := map[string]bool{}
	for _, sink := range c.Sinks {
		if sink.Name == "" || sink.Auditor == nil || names[sink.Name] {
			return wrong("Sinks", "sink %q needs a name of its own and an Auditor", sink.Name)
		}
		names[sink.Name] = true
		if sink.Timeout < 0 || sink.MaxLag < 0 || sink.MaxLag > 0 && sink.MaxLag < deliver.MinLag {
			return wrong("Sinks", "sink %q: Timeout must not be negative, MaxLag zero or at least %s", sink.Name, deliver.MinLag)
		}
	}
	if c.KeepEvents < 0 || c.KeepEvents > 0 && c.KeepEvents < time.Hour {
		return wrong("KeepEvents", "%s is under an hour", c.KeepEvents)
	}
	if c.KeyRotation > 0 && c.KeyRotation < time.Second {
		return wrong("KeyRotation", "%s is under a second", c.KeyRotation)
	}
	if c.Algorithm == "HS256" && len(c.Audiences)+len(c.Validation.Audiences) > 0 {
		return wrong("Algorithm", "HS256 has one secret for issuing and for checking: it is for one process and one audience")
	}
	if c.Restored < RefuseRestored || c.Restored > ReplayedRestored {
		return wrong("Restored", "%d is no choice", c.Restored)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func checkAlgorithm(field, alg string) error {
	switch alg {
	case "ES256", "EdDSA", "RS256", "PS256", "HS256":
		return nil
	case "none":
		return wrong(field, "none is no signature")
	}
	return wrong(field, "%q is not one of ES256, EdDSA, RS256, PS256, HS256", alg)
}

func (c *Config) checkLifetimes() error {
	l := &c.Lifetimes
	if l.Access == 0 {
		l.Access = defaultAccess
	}
	if l.MaxAccess == 0 {
		l.MaxAccess = max(defaultMaxAccess, l.Access)
	}
	if l.Grant == 0 {
		l.Grant = defaultGrant
	}
	return l.check("Lifetimes")
}

// check refuses lifetimes that contradict each other; zero fields of a client's are the service's.
func (l Lifetimes) check(field string) error {
	switch {
	case l.Access < 0 || l.MaxAccess < 0 || l.Grant < 0 || l.Idle < 0 || l.APIKey < 0:
		return wrong(field, "must not be negative")
	case l.Access > 0 && l.Access < time.Second:
		return wrong(field+".Access", "%s is under a second, the unit of exp", l.Access)
	case l.MaxAccess > 0 && l.Access > l.MaxAccess:
		return wrong(field+".Access", "%s is over MaxAccess, %s", l.Access, l.MaxAccess)
	case l.MaxAccess > 24*time.Hour:
		return wrong(field+".MaxAccess", "%s is over a day: revocations would have to be kept as long; use a refresh token", l.MaxAccess)
	case l.Grant > maxGrant:
		return wrong(field+".Grant", "%s is over ten years", l.Grant)
	case l.Grant > 0 && l.Idle > l.Grant:
		return wrong(field+".Idle", "%s is over Grant, %s", l.Idle, l.Grant)
	}
	return nil
}

// checkRole refuses what SetRole and Config.Roles may not define.
func (c *Config) checkRole(role string, scopes Scopes) error {
	if !nameShape.MatchString(role) {
		return fail(ErrInvalidRequest, "role %q is not 1 to 255 printable ASCII characters without space, quote and backslash", role)
	}
	if err := registry(c.Scopes).check(scopes); err != nil {
		return fail(ErrInvalidScope, "role %q: %s", role, detailOf(err))
	}
	return nil
}

// isNil reports whether v is nil or holds a nil pointer, such as what a constructor returned beside an error that nobody read.
func isNil(v any) bool {
	p := reflect.ValueOf(v)
	return v == nil || p.Kind() == reflect.Pointer && p.IsNil()
}

// Validation is how strictly tokens are checked. The zero value is the strict default.
type Validation struct {
	Audiences []string // accepted besides the configured one
	// MaxStaleness is how old the view of revocations may be before Validate answers
	// ErrUnavailable. Zero: 10 s.
	MaxStaleness time.Duration
	// InsecureServeStale is how old the view may be for access tokens to be accepted past MaxStaleness; Token.Freshness and
	// the Observer say so. Zero: they are refused.
	InsecureServeStale time.Duration
	// Skew is how far the clock of whoever signed a token, a DPoP proof or a client's assertion may be ahead of ours: nbf and
	// iat that far in the future are accepted. Zero: 10 s; negative: none; at most 1 min. Where it is set, access tokens are
	// also accepted for as long after exp; by default exp is judged by our clock alone.
	Skew          time.Duration
	MaxTokenBytes int    // zero: 8 KiB; at most 64 KiB
	Cache         *Cache // of verified tokens, which several validators may share; nil: one of its own of 32 MiB; NewCache(0): none
	// RequireProofNonce makes every DPoP proof carry a nonce of this process, which costs a client one more round
	// trip at its first request and every five minutes (RFC 9449 §9). Without it a proof is good once in each
	// process for about a minute; with it, once. Behind a load balancer it needs sticky sessions.
	RequireProofNonce bool
	// FAPI takes only what the FAPI 2.0 Security Profile lets an API take: access tokens that are bound to a DPoP key or a
	// certificate, and tokens and proofs that are signed by PS256, ES256 or EdDSA. Config.FAPI sets it for the service's own
	// validator. API keys are not held to it: an API that is to be called by the profile alone takes none.
	FAPI bool
}

func (v *Validation) check(field string) error {
	if v.MaxStaleness == 0 {
		v.MaxStaleness = defaultStaleness
	}
	if v.Skew < 0 {
		v.Skew = -1
	}
	if v.MaxTokenBytes == 0 {
		v.MaxTokenBytes = defaultTokenBytes
	}
	switch {
	case v.MaxStaleness < 50*time.Millisecond || v.MaxStaleness > time.Hour:
		return wrong(field+".MaxStaleness", "%s is not between 50 ms and 1 h", v.MaxStaleness)
	case v.InsecureServeStale != 0 && v.InsecureServeStale <= v.MaxStaleness:
		return wrong(field+".InsecureServeStale", "%s is not over MaxStaleness, %s", v.InsecureServeStale, v.MaxStaleness)
	case v.Skew > maxSkew:
		return wrong(field+".Skew", "%s is over 1 min", v.Skew)
	case v.MaxTokenBytes < 256 || v.MaxTokenBytes > maxTokenBytes:
		return wrong(field+".MaxTokenBytes", "%d is not between 256 and 65536", v.MaxTokenBytes)
	}
	if err := v.checkFAPI(field); err != nil {
		return err
	}
	for _, a := range v.Audiences {
		if !nameShape.MatchString(a) {
			return wrong(field+".Audiences", "%q is no audience", a)
		}
	}
	return nil
}

// ahead is how far in the future nbf and iat may be.
func (v *Validation) ahead() time.Duration {
	if v.Skew == 0 {
		return defaultAhead
	}
	return max(v.Skew, 0)
}

// late is how long after its exp an access token is still accepted, and how far its iat may be off where a rule names a time.
func (v *Validation) late() time.Duration { return max(v.Skew, 0) }

// Sealer encrypts what must not be stored unencrypted: the root secret, under which the service seals its signing
// keys. A KMS implements it; NewSealer and KeyFile are local. It is asked at start and when secrets rotate, never for a token.
type Sealer interface {
	// Seal encrypts plain. What it returns opens only with an equal context, which is not secret.
	Seal(ctx context.Context, plain, context []byte) (sealed []byte, err error)
	Open(ctx context.Context, sealed, context []byte) (plain []byte, err error)
}

const (
	defaultTokenBytes = 8 << 10
	maxTokenBytes     = 64 << 10
	defaultCacheBytes = 32 << 20
	defaultAhead      = 10 * time.Second // FAPI 2.0 §5.3.2.1 asks for as much at least
)

// checkFAPI refuses what the profile does not allow, and sets what it implies.
func (c *Config) checkFAPI() error {
	if !c.FAPI {
		return nil
	}
	c.Validation.FAPI = true
	if !slices.Contains(jws.FAPIAlgs, c.Algorithm) {
		return wrong("Algorithm", "FAPI allows PS256, ES256 and EdDSA (FAPI 2.0 §5.4.1), not %s", c.Algorithm)
	}
	for audience, alg := range c.AudienceAlgorithms {
		if !slices.Contains(jws.FAPIAlgs, alg) {
			return wrong("AudienceAlgorithms", "%q: FAPI allows PS256, ES256 and EdDSA (FAPI 2.0 §5.4.1), not %s", audience, alg)
		}
	}
	if c.Refresh.RotateConfidential {
		return wrong("Refresh.RotateConfidential", "FAPI has no rotation of refresh tokens (FAPI 2.0 §5.3.2.1)")
	}
	return nil
}

// checkFAPI is for a service's validator and for one alone.
func (v *Validation) checkFAPI(field string) error {
	if v.FAPI && v.Skew != 0 && v.Skew < defaultAhead {
		return wrong(field+".Skew", "FAPI takes what was signed up to %s in the future (FAPI 2.0 §5.3.2.1)", defaultAhead)
	}
	return nil
}

// constrained refuses an access token that nothing binds to its holder (FAPI 2.0 §5.3.2.1).
func (c *Config) constrained(binding string) error {
	if c.FAPI && binding == "" {
		return fail(ErrInvalidRequest, "FAPI: an access token is bound to a DPoP key or a certificate; see Request.Binding")
	}
	return nil
}

func (v *Validation) algorithms() []string {
	if v.FAPI {
		return jws.FAPIAlgs
	}
	return jws.PublicAlgs
}

// allows says what FAPI asks of an access token at an API: its algorithm, and that it is bound (FAPI 2.0 §5.3.4, §5.4.1).
func (v *Validation) allows(p *jws.Token) *Error {
	switch {
	case !v.FAPI:
		return nil
	case !slices.Contains(jws.FAPIAlgs, p.Header.Alg):
		return fail(ErrInvalidToken, "FAPI: signed by another algorithm than PS256, ES256 and EdDSA")
	case p.Claims.Binding == "":
		return fail(ErrInvalidToken, "FAPI: bound to no key and no certificate")
	}
	return nil
}
