// Package remote validates tokens in processes that have no store: it fetches the issuer's keys and follows its
// revocations over HTTP. [Handler] is the issuer's end of the wire.
//
// A validator starts at once, also while the issuer is down, and says by [Validator.Ready] when it knows enough. From then
// on an outage of the issuer costs nothing until the view of revocations is older than Validation.MaxStaleness: then
// Validate answers apitoken.ErrUnavailable, unless InsecureServeStale says otherwise.
package remote

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/keyhash"
)

// Config configures NewValidator.
type Config struct {
	Issuer   string // required: its metadata is discovered (RFC 8414); https, or http on loopback
	Audience string // required: what this process is called in aud
	// Client authenticates this process to the feed and to introspection; its scopes must cover FollowScope. It has an ID and a
	// Secret; or an ID alone where HTTP shows the client's certificate (RFC 8705 §2), which then goes to the hosts that the
	// issuer's mtls_endpoint_aliases name, if it has such. Required, unless InsecureNoRevocations is set.
	Client                apitoken.ClientAuth
	InsecureNoRevocations bool // tokens live until they expire
	// Trust are other issuers whose tokens are taken, as the service's own Config.Trust: those of a host from before, or of an identity
	// provider. The service's rules reach those with a Profile, and it keeps such rules for as long as its own Trust says.
	Trust []apitoken.Trusted
	// KeyHashes are the service's Config.KeyHashes: API keys of another program's are known by them. Without them they are refused.
	KeyHashes  map[string]keyhash.Form
	Validation apitoken.Validation
	// KeysFor is how long the last good keys serve while the issuer cannot be reached. Zero: 24 h.
	KeysFor time.Duration
	// OpaqueFor is how long the answer for an API key is kept; revocations drop it at once.
	// Zero: 30 s. Negative: opaque tokens are refused.
	OpaqueFor time.Duration
	// HTTP makes the requests; nil: one with bounded time. Redirects are never followed, and answers are bounded in
	// size, whatever it does. The feed is a long poll, of half its Timeout at most. A certificate that changes comes from
	// its tls.Config.GetClientCertificate: where the issuer takes the one before no longer, its idle connections are closed,
	// so that the next one shows the new one.
	HTTP *http.Client
	Now  func() time.Time // nil: time.Now
	// Logger is told when the issuer can't be read and why, at the first failure, at each other reason and every five minutes, when
	// it can be read again, and when its clock and ours differ by more than Validation.Skew. nil: silent.
	Logger *slog.Logger
}

// Validator is an [apitoken.Validator] without a store.
type Validator struct {
	v    *apitoken.JWTValidator
	site *site
}

// FollowScope is what a client must hold to follow the feed and to introspect.
const FollowScope apitoken.Scope = "apitoken:validate"

// NewValidator starts following the issuer and returns at once: an issuer that is down does not stop
// this process from starting. Until the first contact Validate answers ErrUnavailable; Ready waits.
// A wrong configuration is an [*apitoken.ConfigError].
func NewValidator(c Config) (*Validator, error) {
	site, err := newSite(c.Issuer, c.HTTP)
	if err != nil {
		return nil, err
	}
	t := apitoken.Trusted{Issuer: c.Issuer, Keys: &keySource{site: site}, Own: true, KeysFor: c.KeysFor, InsecureNoRevocations: c.InsecureNoRevocations}
	cfg := apitoken.ValidatorConfig{Audience: c.Audience, Validation: c.Validation, Now: c.Now, Logger: c.Logger}
	switch {
	case c.InsecureNoRevocations && c.Client.ID != "":
		return nil, refuse("Client", "is for the feed, which InsecureNoRevocations does without")
	case !c.InsecureNoRevocations && c.Client.ID == "":
		return nil, refuse("Client", "is required, to follow revocations; InsecureNoRevocations takes tokens until they expire")
	case !c.Client.Assertion.IsZero() || c.Client.Certificate != nil:
		return nil, refuse("Client", "has an ID, and a Secret or the certificate that HTTP shows: an assertion is good once")
	case !c.InsecureNoRevocations:
		if c.Client.Secret.IsZero() {
			if err := showsCertificate(c.HTTP, site.issuer.Scheme); err != nil {
				return nil, err
			}
			site.shows = true
		}
		wait := c.Validation.MaxStaleness
		if wait == 0 {
			wait = defaultStaleness
		}
		t.Revocations = &feedSource{site: site, client: c.Client, wait: min(wait/3, maxWait, patience(c.HTTP)/2), fresh: wait / 4}
		if c.OpaqueFor >= 0 {
			cfg.OpaqueFor = c.OpaqueFor
			cfg.Introspect = (&introspector{site: site, client: c.Client}).introspect
		}
	}
	if len(c.KeyHashes) > 0 && cfg.Introspect == nil {
		return nil, refuse("KeyHashes", "needs a Client and an OpaqueFor that is not negative: the issuer verifies such keys")
	}
	cfg.Trust, cfg.KeyHashes = append([]apitoken.Trusted{t}, c.Trust...), c.KeyHashes
	v, err := apitoken.NewValidator(cfg)
	if err != nil {
		return nil, err
	}
	return &Validator{v: v, site: site}, nil
}

// showsCertificate refuses what cannot show a certificate, as far as that is seen.
func showsCertificate(c *http.Client, scheme string) error {
	switch {
	case scheme != "https":
		return refuse("Client", "has no Secret: the certificate that proves it in its place needs an https issuer")
	case c == nil || c.Transport == nil:
		return refuse("Client", "has no Secret: HTTP must show the client's certificate")
	}
	if t, ok := c.Transport.(*http.Transport); ok && t.DialTLSContext == nil {
		if x := t.TLSClientConfig; x == nil || len(x.Certificates) == 0 && x.GetClientCertificate == nil {
			return refuse("Client", "has no Secret, and HTTP's transport no certificate to show")
		}
	}
	return nil
}

func refuse(field, why string) error {
	return &apitoken.ConfigError{Field: field, Err: &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "Config." + field + ": " + why}}
}

// Validate implements [apitoken.Validator].
func (v *Validator) Validate(ctx context.Context, c apitoken.Credential) (apitoken.Token, error) {
	return v.v.Validate(ctx, c)
}

// Recheck is [apitoken.JWTValidator.Recheck].
func (v *Validator) Recheck(ctx context.Context, t apitoken.Token) error { return v.v.Recheck(ctx, t) }

// Explain is [apitoken.JWTValidator.Explain].
func (v *Validator) Explain(ctx context.Context, c apitoken.Credential, r apitoken.Requirement) apitoken.Explanation {
	return v.v.Explain(ctx, c, r)
}

// Ready blocks until keys and rules are loaded once, or ctx ends. The error then says why they are not; its Cause is [ErrClient],
// [ErrTLS], [ErrClock], [ErrNotIssuer] or [ErrUnreachable] to errors.Is.
func (v *Validator) Ready(ctx context.Context) error { return v.v.Ready(ctx) }

// Freshness is the validator's view now, for health checks and metrics.
func (v *Validator) Freshness() apitoken.Freshness { return v.v.Freshness() }

// Observe adds o, until stop is called.
func (v *Validator) Observe(o apitoken.Observer) (stop func()) { return v.v.Observe(o) }

// Close ends the validator's goroutines, and the connections that it made itself.
func (v *Validator) Close() error {
	err := v.v.Close()
	v.site.close()
	return err
}
