// Package fetch reads small public JSON documents from URLs that strangers name: a client's metadata, its keys. Whoever names a
// URL makes this process connect somewhere, so that the package owns what may be reached and at what cost:
//
//   - Only https, and only addresses of the public Internet. An address is judged when it is dialed, after the last look at DNS,
//     so that a name that changes its mind between a check and the connection gains nothing.
//   - No redirect, no proxy, no cookie, no compression, a limit of bytes and of time for all of it.
//   - A few fetches at a time. Those who want the same document wait for one fetch.
//   - What came is kept for as long as its HTTP headers say (RFC 9111), within a floor and a ceiling; a failure for a few seconds.
//
// A Fetcher's mutex is a leaf: nothing is called under it. oauthhttp calls it, and remote uses
// its Client.
package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Limits of every Fetcher.
const (
	MaxURL     = 2048
	maxHeader  = 16 << 10
	keptErrors = 10 * time.Second
	maxKept    = 1024 // documents and failures
	perHost    = 4    // of the fetches at a time, so that one slow host does not take all
)

// ErrForbidden is in the error of a URL that must not be fetched, or leads to an address that must not be reached.
var ErrForbidden = errors.New("fetch: not allowed")

// ErrBusy is in the error of a fetch for which there is no room now.
var ErrBusy = errors.New("fetch: too many at once")

// Options change what New does. The zero value is right for a program on the Internet.
type Options struct {
	MaxBytes  int64         // of a document; zero: 64 KiB
	Timeout   time.Duration // of one fetch, its look at DNS included; zero: 5 s
	AtOnce    int           // fetches at a time; zero: 16
	MinAge    time.Duration // a document is kept for at least as long; zero: 1 min
	MaxAge    time.Duration // and at most; zero: 1 h
	TLS       *tls.Config   // nil: the system's roots
	Reachable func(netip.Addr) bool
	Now       func() time.Time // nil: time.Now
}

// Fetcher fetches documents. Make one with New. Its methods may be called from several goroutines.
type Fetcher struct {
	o    Options
	http *http.Client
	room chan struct{} // holds one for each fetch under way

	dialer *net.Dialer
	most   int // entries

	mu   sync.Mutex // guards what follows
	kept map[string]*entry
	busy map[string]int // fetches under way by host
}

// entry is one document: being fetched, or fetched.
type entry struct {
	done  chan struct{} // closed when the rest is there
	body  []byte
	err   error
	until time.Time
}

// defaults fills in what is zero.
func (o *Options) defaults() {
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 10
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.AtOnce == 0 {
		o.AtOnce = 16
	}
	if o.MinAge == 0 {
		o.MinAge = time.Minute
	}
	if o.MaxAge == 0 {
		o.MaxAge = time.Hour
	}
	if o.Reachable == nil {
		o.Reachable = Public
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// New returns a Fetcher.
func New(o Options) *Fetcher {
	o.defaults()
	f := &Fetcher{o: o, room: make(chan struct{}, o.AtOnce), most: maxKept, kept: map[string]*entry{}, busy: map[string]int{}}
	f.dialer, f.http = o.client()
	return f
}

// Client is an HTTP client with a Fetcher's limits on what it reaches: for those who bound the size of answers and the number of
// requests themselves, and ask for https alone. Of the Options it uses Timeout, TLS and Reachable.
func Client(o Options) *http.Client {
	o.defaults()
	_, c := o.client()
	c.Timeout = o.Timeout
	return c
}

func (o *Options) client() (*net.Dialer, *http.Client) {
	reachable := o.Reachable
	d := &net.Dialer{Timeout: o.Timeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !reachable(at.Addr().Unmap().WithZone("")) {
			return fmt.Errorf("%w: the address is not on the public Internet", ErrForbidden)
		}
		return nil
	}}
	return d, &http.Client{
		Transport: &http.Transport{
			DialContext: d.DialContext, TLSClientConfig: o.TLS, TLSHandshakeTimeout: o.Timeout,
			DisableCompression: true, DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Get returns the document at rawURL, one that was kept or a new one; nobody may change it. ErrForbidden: it is not to be fetched.
// ErrBusy: try again in a moment.
func (f *Fetcher) Get(ctx context.Context, rawURL string) ([]byte, error) {
	if err := Check(rawURL); err != nil {
		return nil, err
	}
	e, mine, err := f.enter(rawURL)
	if err != nil {
		return nil, err
	}
	if mine {
		// Others may wait for it: it ends by its own time, not when the first who asked has gone.
		go f.fill(context.WithoutCancel(ctx), rawURL, e)
	}
	select {
	case <-e.done:
		return e.body, e.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// enter returns the entry of a URL; mine: the caller has to fill it.
func (f *Fetcher) enter(rawURL string) (e *entry, mine bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.o.Now()
	if e = f.kept[rawURL]; e != nil {
		select {
		case <-e.done:
			if now.Before(e.until) {
				return e, false, nil
			}
		default:
			return e, false, nil
		}
	}
	host := hostOf(rawURL)
	if f.busy[host] >= perHost {
		return nil, false, ErrBusy
	}
	select {
	case f.room <- struct{}{}:
	default:
		return nil, false, ErrBusy
	}
	f.busy[host]++
	if len(f.kept) >= f.most {
		f.forget(now)
	}
	e = &entry{done: make(chan struct{})}
	f.kept[rawURL] = e
	return e, true, nil
}

// forget makes room: by what is old, else by whatever comes first. What is being fetched stays, which the room bounds.
func (f *Fetcher) forget(now time.Time) {
	var victim string
	for u, e := range f.kept {
		select {
		case <-e.done:
			if !now.Before(e.until) {
				delete(f.kept, u)
			} else {
				victim = u
			}
		default:
		}
	}
	if len(f.kept) >= f.most {
		delete(f.kept, victim)
	}
}

// hostOf is the host of a URL that Check has passed.
func hostOf(rawURL string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(rawURL, "https://"), "/")
	return host
}

func (f *Fetcher) fill(ctx context.Context, rawURL string, e *entry) {
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		host := hostOf(rawURL)
		if f.busy[host]--; f.busy[host] == 0 {
			delete(f.busy, host)
		}
		<-f.room
	}()
	ctx, cancel := context.WithTimeout(ctx, f.o.Timeout)
	defer cancel()
	body, age, err := f.fetch(ctx, rawURL)
	if err != nil {
		age = keptErrors
	}
	e.body, e.err, e.until = body, err, f.o.Now().Add(age)
	close(e.done)
}

// fetch is one request: the document, and for how long it may be kept.
func (f *Fetcher) fetch(ctx context.Context, rawURL string) ([]byte, time.Duration, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		return nil, 0, err
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "apitoken")
	a, err := f.http.Do(r)
	if err != nil {
		return nil, 0, err
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("fetch: status %d, want 200", a.StatusCode)
	}
	if enc := a.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, 0, fmt.Errorf("fetch: the content encoding %q was not asked for", enc)
	}
	kind, _, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" && !(strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json")) {
		return nil, 0, fmt.Errorf("fetch: the media type %q is not application/json", kind)
	}
	body, err := io.ReadAll(io.LimitReader(a.Body, f.o.MaxBytes+1))
	if err == nil {
		err = ctx.Err() // what ends as the time does may have been cut off
	}
	if err != nil {
		return nil, 0, err
	}
	if int64(len(body)) > f.o.MaxBytes {
		return nil, 0, fmt.Errorf("fetch: over %d bytes", f.o.MaxBytes)
	}
	return body, min(max(lifetime(a.Header, f.o.Now()), f.o.MinAge), f.o.MaxAge), nil
}

// lifetime is for how long an answer may be kept (RFC 9111 §4.2.1). What says nothing is zero.
func lifetime(h http.Header, now time.Time) time.Duration {
	var age time.Duration
	stated := false
	for _, field := range h.Values("Cache-Control") {
		for part := range strings.SplitSeq(field, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch strings.ToLower(name) {
			case "no-store", "no-cache":
				return 0
			case "max-age":
				n, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
				if err != nil {
					return 0
				}
				age, stated = time.Duration(n)*time.Second, true
			}
		}
	}
	if !stated {
		expires, err := http.ParseTime(h.Get("Expires"))
		if err != nil {
			return 0
		}
		age = expires.Sub(now)
	}
	if n, err := strconv.ParseUint(h.Get("Age"), 10, 31); err == nil {
		age -= time.Duration(n) * time.Second
	}
	return age
}

// Check says whether a URL may be fetched at all: https, with a host and a path other than "/", in its plain form, without user,
// query or fragment.
func Check(rawURL string) error {
	u, err := url.Parse(rawURL)
	no := func(why string) error { return fmt.Errorf("%w: %s", ErrForbidden, why) }
	switch {
	case err != nil:
		return no("it is no URL")
	case len(rawURL) > MaxURL:
		return no("it is over 2048 bytes")
	case u.Scheme != "https":
		return no("it is not https")
	case u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return no("it has no host")
	case u.User != nil:
		return no("it names a user")
	case strings.Contains(rawURL, "#") || strings.Contains(rawURL, "?"):
		return no("it has a query or a fragment")
	case u.Path == "" || u.Path == "/":
		return no("it has no path")
	case path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/"):
		return no("its path is not in plain form")
	case u.String() != rawURL || strings.ToLower(u.Host) != u.Host:
		return no("it is not in plain form")
	}
	if port := u.Port(); strings.HasSuffix(u.Host, ":") || port == "443" {
		return no("it names the port that it has anyway")
	}
	return nil
}

// special are the ranges that lie in public space and are not of the public Internet (the registries of RFC 6890). For IPv6 only
// 2000::/3 is looked at at all.
var special = func() (out []netip.Prefix) {
	for _, p := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
	} {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}()

var globalUnicast = netip.MustParsePrefix("2000::/3")

// Public reports whether an address is of the public Internet: not of this machine, its network, its cloud's metadata service, or
// a range that carries another address within.
func Public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsValid() || a.Is6() && !globalUnicast.Contains(a) {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
