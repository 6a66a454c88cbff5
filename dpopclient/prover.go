package dpopclient

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/jws"
)

const (
	maxTries  = 3    // of one request: servers behind a balancer may each have nonces of their own
	maxNonce  = 1024 // bytes of a server's nonce that are sent back
	maxSites  = 256  // origins whose nonces are kept
	maxAnswer = 256 << 10
)

// Prover is an [http.RoundTripper] that adds a DPoP proof to each request: for token endpoints, pushed authorization requests and,
// with the access token's hash, requests whose Authorization has the DPoP scheme. A request with the Bearer scheme passes as it
// is. It keeps each server's last nonce, and repeats a request that is refused for the lack of one, if its body can be had again
// ([http.Request].GetBody). Make it with NewProver. Its methods may be called from several goroutines.
//
// golang.org/x/oauth2 gets tokens that are bound to the key by way of it:
//
//	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: prover})
//	token, err := config.Exchange(ctx, code, oauth2.VerifierOption(verifier))
//
// and calls APIs with them, refreshed by its own token source:
//
//	api := &http.Client{Transport: &oauth2.Transport{Source: config.TokenSource(ctx, token), Base: prover}}
type Prover struct {
	key  *jws.Prover
	base http.RoundTripper

	mu     sync.Mutex // guards nonces
	nonces map[string]string
}

// NewProver returns a Prover that signs with key: ECDSA on P-256, P-384 or P-521, Ed25519, or RSA by PS256. Whoever has a
// refresh token of a public client needs its key: keep both. base sends the requests; nil: [http.DefaultTransport].
func NewProver(key crypto.Signer, base http.RoundTripper) (*Prover, error) {
	k, err := jws.NewProver(key)
	if err != nil {
		return nil, fmt.Errorf("dpopclient: %w", err)
	}
	if base == nil {
		base = http.DefaultTransport
	}
	return &Prover{key: k, base: base, nonces: map[string]string{}}, nil
}

// Thumbprint is the key's (RFC 7638): the dpop_jkt of an authorization request (RFC 9449 §10).
func (p *Prover) Thumbprint() string { return p.key.Thumbprint }

// RoundTrip implements [http.RoundTripper].
func (p *Prover) RoundTrip(r *http.Request) (*http.Response, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return p.base.RoundTrip(r)
	case !strings.EqualFold(scheme, "DPoP"):
		token = ""
	}
	repeatable := r.Body == nil || r.Body == http.NoBody || r.GetBody != nil
	site := origin(r.URL)
	for try := 1; ; try++ {
		nonce := p.nonce(site)
		proof, err := p.prove(r, strings.TrimSpace(token), nonce)
		if err != nil {
			closeBody(r)
			return nil, fmt.Errorf("dpopclient: the proof: %w", err)
		}
		sent := clone(r)
		sent.Header.Set("DPoP", proof)
		if try > 1 && r.GetBody != nil && r.Body != nil {
			if sent.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		answer, err := p.base.RoundTrip(sent)
		if err != nil {
			return nil, err
		}
		// RFC 9449 §8.2: whatever the answer is, its nonce is the one to use next.
		fresh := answer.Header["Dpop-Nonce"]
		if len(fresh) != 1 || fresh[0] == "" || len(fresh[0]) > maxNonce {
			return answer, nil
		}
		p.keep(site, fresh[0])
		if try == maxTries || !repeatable || fresh[0] == nonce || !asksForNonce(answer) {
			return answer, nil
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer)) // so that the connection can be used again
		_ = answer.Body.Close()
	}
}

// clone is a request whose headers may be changed, as a RoundTripper must not change those that it is given.
func clone(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	if r.Header == nil {
		r.Header = http.Header{}
	}
	return r
}

// closeBody is what a RoundTripper owes to a request that it does not send.
func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// prove makes the proof for one request (RFC 9449 §4.2). token is empty where no access token is sent.
func (p *Prover) prove(r *http.Request, token, nonce string) (string, error) {
	claims := struct {
		ID     string `json:"jti"`
		Method string `json:"htm"`
		URL    string `json:"htu"`
		Issued int64  `json:"iat"`
		Access string `json:"ath,omitempty"`
		Nonce  string `json:"nonce,omitempty"`
	}{ID: rand.Text(), Method: r.Method, URL: target(r), Issued: time.Now().Unix(), Nonce: nonce}
	if claims.Method == "" {
		claims.Method = http.MethodGet
	}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims.Access = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	var payload bytes.Buffer
	enc := json.NewEncoder(&payload)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(claims); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(r.Context(), signTimeout)
	defer cancel()
	return p.key.Sign(ctx, bytes.TrimSpace(payload.Bytes()))
}

// signTimeout is how long a key outside the process may take for one proof.
const signTimeout = 10 * time.Second

// target is htu: the URL as the server sees it, without query and fragment.
func target(r *http.Request) string {
	host, path := r.Host, r.URL.EscapedPath()
	if host == "" {
		host = r.URL.Host
	}
	if path == "" {
		path = "/"
	}
	return strings.ToLower(r.URL.Scheme) + "://" + host + path
}

// origin names the server of a URL: scheme, host and port.
func origin(u *url.URL) string {
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	switch {
	case port != "":
	case scheme == "https":
		port = "443"
	case scheme == "http":
		port = "80"
	}
	return scheme + "://" + host + " " + port
}

func (p *Prover) nonce(site string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nonces[site]
}

func (p *Prover) keep(site, nonce string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.nonces[site]; !known && len(p.nonces) >= maxSites {
		clear(p.nonces) // each costs one repeated request
	}
	p.nonces[site] = nonce
}

// asksForNonce reports whether a server refused a request for the lack of its nonce: a resource in its challenge (RFC 9449 §9), a
// token endpoint in its body (§8), which can be read again afterwards.
func asksForNonce(answer *http.Response) bool {
	if answer.StatusCode != http.StatusUnauthorized && answer.StatusCode != http.StatusBadRequest {
		return false
	}
	for _, challenge := range answer.Header["Www-Authenticate"] {
		if strings.Contains(challenge, "use_dpop_nonce") {
			return true
		}
	}
	head, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	rest := answer.Body
	answer.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), failing{err}, rest), rest}
	var said struct{ Error string }
	return err == nil && json.Unmarshal(head, &said) == nil && said.Error == "use_dpop_nonce"
}

// failing reads as err, or as the end.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, io.EOF
}
