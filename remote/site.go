package remote

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/fetch"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/store"
)

const (
	defaultStaleness = 10 * time.Second
	maxWait          = 20 * time.Second // of a long poll
	requestTimeout   = 10 * time.Second // of everything else
	syncTimeout      = 2 * time.Second  // of the issuer's look at its store
	maxMetadata      = 64 << 10
	maxKeySet        = 256 << 10
	maxFeed          = 4 << 20
	maxIntrospection = 64 << 10
	rediscover       = time.Hour
	rediscoverPause  = time.Minute // after a try that failed
	distrustPause    = time.Second
)

// site is an issuer as it is reached over HTTP.
type site struct {
	issuer *url.URL
	name   string // issuer as it was written: what its metadata must say
	http   *http.Client
	own    *http.Transport // made here; nil: the host's
	shows  bool            // a certificate proves this process
	// Where the metadata are, the first that is there; nil: MetadataURL(name). Only the key set is taken of them then.
	metadataURLs []string

	first chan struct{} // holds the one right to read the metadata while there are none; a channel, so that waiting ends with a context
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu      sync.Mutex // guards all below
	date    time.Time  // what the issuer's clock showed last; zero: unknown
	dated   time.Time  // when it did, by the monotonic clock
	meta    *metadata
	next    time.Time // when they are read again
	reading bool
	closed  bool
}

// metadata is what we read of RFC 8414.
type metadata struct {
	Issuer        string `json:"issuer"`
	JWKS          string `json:"jwks_uri"`
	Introspection string `json:"introspection_endpoint"`
	Revocations   string `json:"apitoken_revocations_endpoint"`
	// Aliases are for clients that show certificates (RFC 8705 §5).
	Aliases struct {
		Introspection string `json:"introspection_endpoint"`
		Revocations   string `json:"apitoken_revocations_endpoint"`
	} `json:"mtls_endpoint_aliases"`
}

// introspection and revocations are where a client goes, by how it proves who it is.
func (m *metadata) introspection(c *apitoken.ClientAuth) string {
	if c.Secret.IsZero() && m.Aliases.Introspection != "" {
		return m.Aliases.Introspection
	}
	return m.Introspection
}

func (m *metadata) revocations(c *apitoken.ClientAuth) string {
	if c.Secret.IsZero() && m.Aliases.Revocations != "" {
		return m.Aliases.Revocations
	}
	return m.Revocations
}

func newSite(issuer string, c *http.Client) (*site, error) {
	if why := issuers.CheckName(issuer); why != "" {
		return nil, refuse("Issuer", why)
	}
	u, _ := url.Parse(issuer) // which CheckName could
	s := &site{issuer: u, name: issuer, first: make(chan struct{}, 1)}
	s.http, s.own = careful(c)
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// close ends what runs in the background, and the connections that were made here.
func (s *site) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.wg.Wait()
	if s.own != nil {
		s.own.CloseIdleConnections()
	}
}

// careful is c, or a default, without redirects: what answers for an issuer is the issuer.
func careful(c *http.Client) (*http.Client, *http.Transport) {
	var made *http.Transport
	if c == nil {
		base, ok := http.DefaultTransport.(*http.Transport) // a host may have put something else there
		if !ok {
			base = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: requestTimeout}
		}
		made = base.Clone()
		made.MaxResponseHeaderBytes = 64 << 10
		made.ResponseHeaderTimeout = maxWait + requestTimeout
		made.MaxConnsPerHost = 16
		c = &http.Client{Transport: made}
	}
	own := *c
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	own.Jar = nil
	return &own, made
}

// patience is how long a client waits for an answer, as far as it tells: whoever asks for a longer poll never gets one.
func patience(c *http.Client) time.Duration {
	d := 2 * (maxWait + requestTimeout)
	if c == nil {
		return d
	}
	if c.Timeout > 0 {
		d = min(d, c.Timeout)
	}
	if t, ok := c.Transport.(*http.Transport); ok && t.ResponseHeaderTimeout > 0 {
		d = min(d, t.ResponseHeaderTimeout)
	}
	return d
}

// do sends a request for what, and reads at most limit bytes of its answer. client is whose credential it holds, if any.
func (s *site) do(what string, r *http.Request, limit int64, client *apitoken.ClientAuth) (*http.Response, []byte, error) {
	res, err := s.http.Do(r)
	if err != nil {
		return nil, nil, failed(what, err, client)
	}
	defer res.Body.Close()
	if at, ok := dateOf(res); ok {
		s.mu.Lock()
		s.date, s.dated = at, time.Now()
		s.mu.Unlock()
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, nil, failed(what, err, client)
	}
	if int64(len(body)) > limit {
		return nil, nil, notIssuer("%s: over %d bytes", what, limit)
	}
	return res, body, nil
}

// IssuerTime is what the issuer's clock shows now, to about a second; known is false before its first answer with a Date.
func (s *site) IssuerTime() (now time.Time, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.date.IsZero() {
		return time.Time{}, false
	}
	return s.date.Add(time.Since(s.dated)), true
}

// ask sends what build makes as client, for what, and reads the answer. A certificate may have changed since the connection was made that
// is refused now: then another one is made, once.
func (s *site) ask(what string, client *apitoken.ClientAuth, limit int64, build func() (*http.Request, error)) (*http.Response, []byte, error) {
	for again := false; ; again = true {
		r, err := build()
		if err != nil {
			return nil, nil, err
		}
		if !client.Secret.IsZero() {
			r.SetBasicAuth(url.QueryEscape(client.ID), url.QueryEscape(client.Secret.Reveal())) // RFC 6749 §2.3.1
		}
		res, body, err := s.do(what, r, limit, client)
		if err != nil || again || res.StatusCode != http.StatusUnauthorized || !client.Secret.IsZero() {
			return res, body, err
		}
		s.http.CloseIdleConnections()
	}
}

// discover returns the issuer's metadata (RFC 8414 §3). The first time it waits for them; from then on they are read again in the
// background, and the last good ones serve meanwhile: an issuer whose metadata hang or are gone still has its feed and its keys.
func (s *site) discover(ctx context.Context) (*metadata, error) {
	if m := s.known(); m != nil {
		return m, nil
	}
	select {
	case s.first <- struct{}{}:
		defer func() { <-s.first }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if m := s.known(); m != nil {
		return m, nil // whoever was before us read them
	}
	m, err := s.fetch(ctx)
	if err != nil {
		return nil, err
	}
	s.keep(m)
	return m, nil
}

// known is what was read last, if anything. It starts reading it again when it is time.
func (s *site) known() *metadata {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil || s.reading || s.closed || time.Now().Before(s.next) {
		return s.meta
	}
	s.reading, s.next = true, time.Now().Add(rediscoverPause)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		m, err := s.fetch(s.ctx)
		if err == nil {
			s.keep(m)
		}
		s.mu.Lock()
		s.reading = false
		s.mu.Unlock()
	}()
	return s.meta
}

func (s *site) keep(m *metadata) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meta, s.next = m, time.Now().Add(rediscover)
}

// distrust makes the metadata be read again soon: something that they named did not work.
func (s *site) distrust() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if soon := time.Now().Add(distrustPause); soon.Before(s.next) {
		s.next = soon
	}
}

func (s *site) fetch(ctx context.Context) (*metadata, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	from := s.metadataURLs
	if from == nil {
		from = []string{MetadataURL(s.name)}
	}
	var what string
	var body []byte
	for i, u := range from {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Accept", "application/json")
		what = "metadata at " + r.URL.Path
		var res *http.Response
		if res, body, err = s.do(what, r, maxMetadata, nil); err != nil {
			return nil, err
		}
		if res.StatusCode == http.StatusOK {
			break
		}
		if i == len(from)-1 || res.StatusCode != http.StatusNotFound {
			return nil, status(what, res, nil)
		}
	}
	var m metadata
	// Strict JSON first: encoding/json takes the last of two members with one name.
	if jws.CheckJSON(body) != nil || json.Unmarshal(body, &m) != nil {
		return nil, notIssuer("%s are not JSON", what)
	}
	if m.Issuer != s.name {
		return nil, notIssuer("%s are another issuer's, not those of %s (RFC 8414 §3.3)", what, s.name)
	}
	if m.JWKS == "" {
		return nil, notIssuer("%s name no jwks_uri", what)
	}
	if err := s.check(m.JWKS, false); err != nil {
		return nil, notIssuer("%s: jwks_uri %v", what, err)
	}
	if s.metadataURLs != nil {
		return &metadata{Issuer: m.Issuer, JWKS: m.JWKS}, nil
	}
	// These two get our credential: they must be the issuer's own.
	for _, endpoint := range []string{m.Introspection, m.Revocations} {
		if endpoint == "" {
			continue
		}
		if err := s.check(endpoint, true); err != nil {
			return nil, notIssuer("%s: an endpoint %v", what, err)
		}
	}
	// Their hosts are others on purpose, and get no credential that could be used elsewhere.
	for _, endpoint := range []string{m.Aliases.Introspection, m.Aliases.Revocations} {
		if endpoint == "" || !s.shows {
			continue
		}
		if err := s.check(endpoint, false); err != nil {
			return nil, notIssuer("%s: an endpoint for certificates %v", what, err)
		}
	}
	return &m, nil
}

// check refuses URLs that are not https (or loopback, where the issuer is), or of another origin where that matters.
func (s *site) check(raw string, own bool) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return errors.New("is no URL")
	case !issuers.Secure(u) || u.Scheme == "http" && !issuers.Loopback(s.issuer):
		return errors.New("is not https")
	case own && (u.Scheme != s.issuer.Scheme || !strings.EqualFold(u.Host, s.issuer.Host)):
		return errors.New("is of another origin than the issuer")
	}
	return nil
}

// MetadataURL is where an issuer's metadata are (RFC 8414 §3.1): the well-known part goes between host and path.
func MetadataURL(issuer string) string {
	u, err := url.Parse(issuer)
	if err != nil {
		return ""
	}
	u.Path, u.RawPath = wellKnown+strings.TrimSuffix(u.Path, "/"), wellKnown+strings.TrimSuffix(u.EscapedPath(), "/")
	return u.String()
}

// keySource reads an issuer's key set.
type keySource struct {
	site *site
	url  string // fixed, where there is no discovery

	mu   sync.Mutex // guards last; not held while a request is under way
	last keyAnswer
}

// keyAnswer is a set as it came last.
type keyAnswer struct {
	from, etag string
	doc        []byte
}

// Keys fetches the JWKS at url, which is https, or http on loopback: for issuers that are not of this module's making. The
// answer is bounded in size and time; redirects are not followed. c is as Config.HTTP. With another URL every reading fails.
func Keys(from string, c *http.Client) feed.KeySource {
	u, err := url.Parse(from)
	if err != nil || u.Host == "" || u.User != nil || !issuers.Secure(u) {
		return brokenKeys{errors.New("remote: a key set has an https URL, or http on loopback")}
	}
	client, _ := careful(c)
	return &keySource{site: &site{issuer: u, http: client}, url: from}
}

// Discover reads the metadata of an issuer that is not of this module's making, and then the key set that they name, at each reading
// of the keys where they are over an hour old. issuer must be what they say. metadata is their address; empty: OpenID Connect
// Discovery's, issuer with /.well-known/openid-configuration behind it, or where nothing is there RFC 8414's. Both addresses are https,
// or http on loopback. With another one every reading fails.
//
// c nil: a client that reaches addresses of the public Internet alone, whatever the metadata name, without a proxy. An issuer in a
// network of its own, or on loopback, needs a client of the host's; redirects are not followed, and answers are bounded in size.
func Discover(issuer, metadata string, c *http.Client) feed.KeySource {
	if c == nil {
		c = fetch.Client(fetch.Options{Timeout: requestTimeout})
	}
	s, err := newSite(issuer, c)
	if err != nil {
		return brokenKeys{err}
	}
	s.metadataURLs = []string{strings.TrimSuffix(issuer, "/") + "/.well-known/openid-configuration", MetadataURL(issuer)}
	if metadata != "" {
		if err := s.check(metadata, false); err != nil {
			return brokenKeys{fmt.Errorf("remote: the address of the metadata %w", err)}
		}
		s.metadataURLs = []string{metadata}
	}
	return &keySource{site: s}
}

type brokenKeys struct{ err error }

func (b brokenKeys) JWKS(context.Context, string) ([]byte, error) { return nil, b.err }

// IssuerTime is the site's.
func (k *keySource) IssuerTime() (now time.Time, known bool) { return k.site.IssuerTime() }

// JWKS implements [feed.KeySource].
func (k *keySource) JWKS(ctx context.Context, _ string) ([]byte, error) {
	from := k.url
	if from == "" {
		m, err := k.site.discover(ctx)
		if err != nil {
			return nil, err
		}
		from = m.JWKS
	}
	k.mu.Lock()
	last := k.last
	k.mu.Unlock()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/jwk-set+json, application/json")
	// What a cache in between kept may be from before a key was withdrawn. We ask seldom.
	r.Header.Set("Cache-Control", "no-cache")
	asked := last.etag != "" && last.from == from
	if asked {
		r.Header.Set("If-None-Match", last.etag)
	}
	what := "keys at " + r.URL.Path
	res, body, err := k.site.do(what, r, maxKeySet, nil)
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode == http.StatusNotModified && asked:
		return last.doc, nil
	case res.StatusCode != http.StatusOK:
		if k.url == "" {
			k.site.distrust()
		}
		return nil, status(what, res, nil)
	}
	k.mu.Lock()
	k.last = keyAnswer{from, res.Header.Get("ETag"), body}
	k.mu.Unlock()
	return body, nil
}

// feedSource follows an issuer's rules.
type feedSource struct {
	site   *site
	client apitoken.ClientAuth
	wait   time.Duration
	fresh  time.Duration // how old the issuer's own view may be
}

// Waits says that an answer comes when there is news, or after a while.
func (f *feedSource) Waits() bool { return true }

// Revocations implements [feed.Source].
func (f *feedSource) Revocations(ctx context.Context, after store.Position, max int) (feed.View, error) {
	var none feed.View
	m, err := f.site.discover(ctx)
	if err != nil {
		return none, err
	}
	endpoint := m.revocations(&f.client)
	if endpoint == "" {
		f.site.distrust()
		return none, notIssuer("it has no feed: it does not mount remote.Handler")
	}
	nonce := rand.Text()
	q := url.Values{"after": {formatPosition(after)}, "nonce": {nonce}, "max": {strconv.Itoa(max)}, "fresh": {strconv.FormatInt(f.fresh.Milliseconds(), 10)}}
	if after != (store.Position{}) {
		q.Set("wait", strconv.FormatInt(f.wait.Milliseconds(), 10))
	}
	if f.client.Secret.IsZero() {
		q.Set("client_id", f.client.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, f.wait+requestTimeout)
	defer cancel()
	res, body, err := f.site.ask("feed", &f.client, maxFeed, func() (*http.Request, error) {
		return http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"?"+q.Encode(), nil)
	})
	switch {
	case err != nil:
		return none, err
	case res.StatusCode == http.StatusConflict:
		return none, store.ErrDiverged
	case res.StatusCode == http.StatusNotFound:
		f.site.distrust()
		return none, status("feed", res, &f.client)
	case res.StatusCode != http.StatusOK:
		return none, status("feed", res, &f.client)
	}
	return decodeView(body, nonce, after)
}

// introspector asks about opaque tokens.
type introspector struct {
	site   *site
	client apitoken.ClientAuth
}

func (i *introspector) introspect(ctx context.Context, token string) (apitoken.Introspection, error) {
	var none apitoken.Introspection
	m, err := i.site.discover(ctx)
	if err != nil {
		return none, err
	}
	endpoint := m.introspection(&i.client)
	if endpoint == "" {
		i.site.distrust()
		return none, notIssuer("it does not introspect")
	}
	form := url.Values{"token": {token}}
	if i.client.Secret.IsZero() {
		form.Set("client_id", i.client.ID)
	}
	res, body, err := i.site.ask("introspection", &i.client, maxIntrospection, func() (*http.Request, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
		if err == nil {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Accept", "application/json")
		}
		return r, err
	})
	if err != nil {
		return none, err
	}
	if res.StatusCode != http.StatusOK {
		return none, status("introspection", res, &i.client)
	}
	return decodeIntrospection(body)
}
