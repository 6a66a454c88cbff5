package fetch

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// site is a TLS server and a Fetcher that may reach it.
type site struct {
	*httptest.Server
	hits  atomic.Int64
	conns atomic.Int64
	f     *Fetcher
	now   time.Time
}

func start(t *testing.T, h http.HandlerFunc, change ...func(*Options)) *site {
	t.Helper()
	s := &site{now: time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		w.Header().Set("Content-Type", "application/json")
		h(w, r)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	o := Options{TLS: &tls.Config{RootCAs: roots, ServerName: "example.com"}, Reachable: func(netip.Addr) bool { return true }, Now: func() time.Time { return s.now }}
	for _, f := range change {
		f(&o)
	}
	s.f = New(o)
	return s
}

func (s *site) port() string {
	u, _ := url.Parse(s.URL)
	return u.Port()
}

func hello(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"a":1}`) }

func TestWhichURLsMayBeFetched(t *testing.T) {
	t.Parallel()
	for u, why := range map[string]string{
		"https://example.com/client.json":                          "",
		"https://example.com:8443/a/b":                             "",
		"https://example.com/a/":                                   "",
		"http://example.com/a":                                     "not https",
		"HTTPS://example.com/a":                                    "plain form",
		"https://EXAMPLE.com/a":                                    "plain form",
		"https://example.com:443/a":                                "port",
		"https://example.com:/a":                                   "port",
		"https://example.com":                                      "no path",
		"https://example.com/":                                     "no path",
		"https:///a":                                               "no host",
		"https:a":                                                  "no host",
		"https://user@example.com/a":                               "user",
		"https://user:pw@example.com/a":                            "user",
		"https://example.com/a?b":                                  "query",
		"https://example.com/a?":                                   "query",
		"https://example.com/a#b":                                  "fragment",
		"https://example.com/a#":                                   "fragment",
		"https://example.com/../a":                                 "plain form",
		"https://example.com/a/./b":                                "plain form",
		"https://example.com/a/%2e%2e/b":                           "plain form",
		"https://example.com//a":                                   "plain form",
		"https://exa mple.com/a":                                   "no URL",
		"https://example.com/" + strings.Repeat("a", 2048):         "2048",
		"file:///etc/passwd":                                       "not https",
		"https://example.com/a\n":                                  "no URL",
		"https://[::1]/a":                                          "", // judged when it is dialed
		"data:application/json,{}":                                 "not https",
		"https://example.com\\@evil.example/a":                     "no URL",
		"https://example.com/" + strings.Repeat("a", 100) + "/é.j": "plain form",
	} {
		err := Check(u)
		if why == "" {
			assert.NoError(t, err, u)
			continue
		}
		assert.ErrorIs(t, err, ErrForbidden, u)
		assert.ErrorContains(t, err, why, u)
	}
}

func TestWhichAddressesAreOfThePublicInternet(t *testing.T) {
	t.Parallel()
	for a, want := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "2606:4700::1111": true, "::ffff:8.8.8.8": true,
		"127.0.0.1": false, "127.9.9.9": false, "0.0.0.0": false, "10.1.2.3": false, "172.16.0.1": false, "172.31.255.255": false,
		"172.32.0.1": true, "192.168.1.1": false, "100.64.0.1": false, "169.254.169.254": false, "192.0.0.192": false, "198.18.0.1": false,
		"224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false, "203.0.113.7": false,
		"::1": false, "::": false, "fe80::1": false, "fe80::1%eth0": false, "fc00::1": false, "fd00:ec2::254": false, "ff02::1": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "::127.0.0.1": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false,
		"2001::1": false, "2001:db8::1": false, "fec0::1": false, "3fff::1": false,
	} {
		assert.Equal(t, want, Public(netip.MustParseAddr(a)), a)
	}
	assert.False(t, Public(netip.Addr{}))
}

func TestNoConnectionToThisMachineHoweverItIsWritten(t *testing.T) {
	t.Parallel()
	s := start(t, hello, func(o *Options) { o.Reachable = nil })
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "0", "localhost."} {
		_, err := s.f.Get(t.Context(), "https://"+host+":"+s.port()+"/a")
		assert.Error(t, err, host)
	}
	assert.Zero(t, s.conns.Load())
}

func TestANameIsJudgedByTheAddressThatIsDialed(t *testing.T) {
	t.Parallel()
	good, bad := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	s := start(t, hello, func(o *Options) { o.Reachable = func(a netip.Addr) bool { return a == good } })
	var answer atomic.Pointer[netip.Addr]
	answer.Store(&good)
	s.f.dialer.Resolver = resolver(t, &answer)
	u := "https://rebind.example:" + s.port() + "/a"

	_, err := s.f.Get(t.Context(), u)
	require.NoError(t, err)
	before := s.conns.Load()

	answer.Store(&bad) // the name now leads elsewhere
	s.now = s.now.Add(2 * time.Hour)
	_, err = s.f.Get(t.Context(), u)
	require.ErrorIs(t, err, ErrForbidden)
	assert.Equal(t, before, s.conns.Load())
}

// resolver asks a DNS server of the test, which answers every question for an IPv4 address alike.
func resolver(t *testing.T, answer *atomic.Pointer[netip.Addr]) *net.Resolver {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			end := 12 + bytes.IndexByte(buf[12:n], 0) + 5 // the header, the name, its type and its class
			out := bytes.Clone(buf[:end])
			binary.BigEndian.PutUint16(out[2:], 0x8180) // an answer
			binary.BigEndian.PutUint16(out[10:], 0)     // nothing additional
			if binary.BigEndian.Uint16(out[end-4:]) == 1 {
				binary.BigEndian.PutUint16(out[6:], 1)
				a := answer.Load().As4()
				out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, a[0], a[1], a[2], a[3])
			}
			_, _ = c.WriteTo(out, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}

func TestAnswersThatAreNotTaken(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(other.Close)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 10<<20))
	_ = z.Close()
	for name, h := range map[string]http.HandlerFunc{
		"a redirect":        func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) },
		"another status":    func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound); hello(w, r) },
		"no content":        func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"HTML":              func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Type", "text/html"); hello(w, r) },
		"an endless body":   endless,
		"one byte too much": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1001)) },
		"a gzip bomb": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb.Bytes())
		},
		"an endless header": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 64<<10)) },
		"a body cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "{}")
		},
		"silence": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"a body that drips": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "{")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, h, func(o *Options) { o.MaxBytes, o.Timeout = 1000, 500*time.Millisecond })
			_, err := s.f.Get(t.Context(), s.URL+"/a")
			require.Error(t, err)
		})
	}
	t.Cleanup(func() { assert.Zero(t, elsewhere.Load(), "a redirect was followed") })
}

func endless(w http.ResponseWriter, _ *http.Request) {
	for {
		if _, err := w.Write(make([]byte, 4096)); err != nil {
			return
		}
	}
}

func TestADocumentIsKeptAsItsHeadersSay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		header map[string]string
		age    time.Duration
	}{
		"nothing is said":   {nil, time.Minute},
		"max-age":           {map[string]string{"Cache-Control": "public, max-age=600"}, 10 * time.Minute},
		"less than a floor": {map[string]string{"Cache-Control": "max-age=1"}, time.Minute},
		"more than may be":  {map[string]string{"Cache-Control": "max-age=999999"}, time.Hour},
		"not to be stored":  {map[string]string{"Cache-Control": "max-age=600, no-store"}, time.Minute},
		"older than fresh":  {map[string]string{"Cache-Control": "max-age=600", "Age": "300"}, 5 * time.Minute},
		"an end":            {map[string]string{"Expires": "Tue, 01 Jan 2030 12:20:00 GMT"}, 20 * time.Minute},
		"max-age is first":  {map[string]string{"Expires": "Tue, 01 Jan 2030 12:20:00 GMT", "Cache-Control": "max-age=300"}, 5 * time.Minute},
		"junk":              {map[string]string{"Cache-Control": "max-age=x", "Expires": "0"}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, func(w http.ResponseWriter, r *http.Request) {
				for k, v := range c.header {
					w.Header().Set(k, v)
				}
				hello(w, r)
			})
			get := func() {
				t.Helper()
				body, err := s.f.Get(t.Context(), s.URL+"/a")
				require.NoError(t, err)
				require.JSONEq(t, `{"a":1}`, string(body))
			}
			get()
			s.now = s.now.Add(c.age - time.Nanosecond)
			get()
			require.EqualValues(t, 1, s.hits.Load())
			s.now = s.now.Add(time.Nanosecond)
			get()
			require.EqualValues(t, 2, s.hits.Load())
		})
	}
}

func TestAFailureIsKeptForSeconds(t *testing.T) {
	t.Parallel()
	s := start(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	for range 3 {
		_, err := s.f.Get(t.Context(), s.URL+"/a")
		require.ErrorContains(t, err, "500")
	}
	require.EqualValues(t, 1, s.hits.Load())
	s.now = s.now.Add(keptErrors)
	_, err := s.f.Get(t.Context(), s.URL+"/a")
	require.Error(t, err)
	require.EqualValues(t, 2, s.hits.Load())
}

func TestThoseWhoWantTheSameWaitForOneFetch(t *testing.T) {
	t.Parallel()
	open, asked := make(chan struct{}), make(chan struct{}, 1)
	s := start(t, func(w http.ResponseWriter, r *http.Request) { asked <- struct{}{}; <-open; hello(w, r) })
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := s.f.Get(ctx, s.URL+"/a"); first <- err }()
	<-asked
	cancel() // who asked first goes; the fetch goes on
	require.ErrorIs(t, <-first, context.Canceled)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			_, err := s.f.Get(t.Context(), s.URL+"/a")
			assert.NoError(t, err)
		})
	}
	close(open)
	wg.Wait()
	require.EqualValues(t, 1, s.hits.Load())
}

func TestASlowHostLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	open, asked := make(chan struct{}), make(chan struct{}, perHost)
	s := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/quick" {
			asked <- struct{}{}
			<-open
		}
		hello(w, r)
	}, func(o *Options) { o.AtOnce = perHost + 1 })
	t.Cleanup(func() { close(open) })
	for i := range perHost {
		go func() { _, _ = s.f.Get(t.Context(), fmt.Sprintf("%s/slow%d", s.URL, i)) }()
	}
	for range perHost {
		<-asked
	}
	_, err := s.f.Get(t.Context(), s.URL+"/quick")
	require.ErrorIs(t, err, ErrBusy)
	_, err = s.f.Get(t.Context(), "https://localhost:"+s.port()+"/quick")
	require.NoError(t, err)
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	s := start(t, hello)
	s.f.most = 8
	for i := range 20 {
		_, err := s.f.Get(t.Context(), fmt.Sprintf("%s/%d", s.URL, i))
		require.NoError(t, err)
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	require.Len(t, s.f.kept, 8)
}
