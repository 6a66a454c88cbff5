package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/remote"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// These benchmarks measure how much strangers without a credential slow down callers who have one. Run one with -benchtime 5x on an idle machine.

const strangers = 256

// as is a context of a caller from an address that nobody came from before.
func as(n int64) context.Context {
	return apitoken.WithOrigin(context.Background(), apitoken.Origin{Address: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})})
}

// crowd calls f from n goroutines until the function that it returns is called.
func crowd(n int, f func(i int64)) (stop func()) {
	var wg sync.WaitGroup
	var next atomic.Int64
	done := make(chan struct{})
	for range n {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					f(next.Add(1))
					runtime.Gosched() // as a connection does between its requests
				}
			}
		})
	}
	return func() {
		close(done)
		wg.Wait()
	}
}

func percentile(list []time.Duration, p int) float64 {
	slices.Sort(list)
	return float64(list[(len(list)-1)*p/100].Microseconds()) / 1000
}

// Junk API keys on a hundred connections to an API whose validator is remote, the issuer 20 ms away: 300 holders of good keys
// come for the first time.
func BenchmarkJunkKeysAtARemote(b *testing.B) {
	ctx := context.Background()
	var asked atomic.Int64
	var handler http.Handler
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			asked.Add(1)
			time.Sleep(20 * time.Millisecond)
		}
		handler.ServeHTTP(w, r)
	}))
	defer front.Close()
	config := apitoken.Config{Issuer: front.URL, Audience: audience, Store: memstore.New(), InsecureKeysInStore: true}
	svc := must(apitoken.New(config))
	defer svc.Close()
	handler = remote.Handler(svc)
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "orders", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{remote.FollowScope}})
	if err != nil {
		b.Fatal(err)
	}
	config.Store = memstore.New()
	theirs := must(apitoken.New(config)) // keys of the right shape and checksum
	defer theirs.Close()
	create := func(by *apitoken.Service, n int) (list []string) {
		for i := range n {
			_, key, err := by.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: fmt.Sprint("user", i)})
			if err != nil {
				b.Fatal(err)
			}
			list = append(list, key.Reveal())
		}
		return list
	}
	junk := create(theirs, 2000)
	for i := range 500 {
		text := make([]byte, 16)
		rand.Read(text)
		junk = append(junk, "at_ak_"+hex.EncodeToString(text), "at_ak_\x80", "zz_ak_"+junk[i][6:], junk[i]+"0", strings.Repeat("A", 8000))
	}
	var refused, questions, took float64
	for range b.N {
		v := must(remote.NewValidator(remote.Config{Issuer: front.URL, Audience: audience, Client: apitoken.ClientAuth{ID: "orders", Secret: secret}}))
		if err := v.Ready(ctx); err != nil {
			b.Fatal(err)
		}
		api := httptest.NewServer(httpauth.New(v, nil).Authenticated(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}}
		get := func(token string) int {
			r, _ := http.NewRequest(http.MethodGet, api.URL, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			answer, err := client.Do(r)
			if err != nil {
				return 0
			}
			defer answer.Body.Close()
			io.Copy(io.Discard, answer.Body)
			return answer.StatusCode
		}
		good := create(svc, 300)
		stop := crowd(100, func(i int64) { get(junk[i%int64(len(junk))]) })
		time.Sleep(time.Second)
		before, began := asked.Load(), time.Now()
		time.Sleep(2 * time.Second)
		questions += float64(asked.Load()-before) / time.Since(began).Seconds()
		began = time.Now()
		for _, key := range good {
			if get(key) != http.StatusOK {
				refused++
			}
		}
		took += time.Since(began).Seconds() / 300 * 1000
		stop()
		api.Close()
		v.Close()
	}
	b.ReportMetric(refused/float64(b.N), "refused/300")
	b.ReportMetric(questions/float64(b.N), "questions-of-junk/s")
	b.ReportMetric(took/float64(b.N), "ms/good-key")
	b.ReportMetric(0, "ns/op")
}

// chosenSecret is a service one of whose clients has a secret that its host chose.
func chosenSecret(b *testing.B) (*apitoken.Service, apitoken.ClientAuth) {
	auth := apitoken.ClientAuth{ID: "orders", Secret: apitoken.NewSecret("correct-horse-battery-staple-42")}
	svc := newService(b, "ES256", nil)
	if err := svc.Clients.Declare(context.Background(), apitoken.Client{ID: auth.ID, GrantTypes: []string{"client_credentials"}}, auth.Secret); err != nil {
		b.Fatal(err)
	}
	return svc, auth
}

// 256 callers make client names up, each from an address of its own. A client with a secret that its host chose comes to a process that has not seen it
// yet. The time of one slow hash on this machine is given beside it.
func BenchmarkMadeUpClients(b *testing.B) {
	var waited, alone []time.Duration
	for range b.N {
		svc, auth := chosenSecret(b)
		began := time.Now()
		if _, err := apitoken.HashSecret(auth.Secret); err != nil {
			b.Fatal(err)
		}
		alone = append(alone, time.Since(began))
		stop := crowd(strangers, func(i int64) {
			svc.Clients.Authenticate(as(i), apitoken.ClientAuth{ID: fmt.Sprint("made-up-", i), Secret: apitoken.NewSecret("no secret of any client")})
		})
		time.Sleep(500 * time.Millisecond)
		began = time.Now()
		if _, err := svc.Clients.Authenticate(as(0), auth); err != nil {
			b.Fatal(err)
		}
		waited = append(waited, time.Since(began))
		stop()
	}
	b.ReportMetric(percentile(waited, 50), "ms-p50")
	b.ReportMetric(percentile(waited, 100), "ms-max")
	b.ReportMetric(percentile(alone, 50), "ms-hash-alone")
	b.ReportMetric(0, "ns/op")
}

// Fifty wrong secrets a second, of made-up names and of the client that has a chosen one, for two seconds: how long Issue takes meanwhile.
func BenchmarkIssueBesideWrongSecrets(b *testing.B) {
	svc, auth := chosenSecret(b)
	ctx := context.Background()
	var times []time.Duration
	var sent atomic.Int64
	for range b.N {
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for tick := time.NewTicker(20 * time.Millisecond); ; {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				i := sent.Add(1)
				name := fmt.Sprint("made-up-", i)
				if i%5 == 0 {
					name = auth.ID
				}
				wg.Go(func() {
					c, cancel := context.WithTimeout(as(i), 5*time.Second)
					defer cancel()
					if _, err := svc.Clients.Authenticate(c, apitoken.ClientAuth{ID: name, Secret: apitoken.NewSecret("no secret of any client")}); err == nil || errors.Is(err, apitoken.ErrInvalidRequest) {
						b.Error(err)
					}
				})
			}
		})
		time.Sleep(200 * time.Millisecond)
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			began := time.Now()
			if _, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true}); err != nil {
				b.Fatal(err)
			}
			times = append(times, time.Since(began))
		}
		close(stop)
		wg.Wait()
	}
	b.ReportMetric(percentile(times, 50), "ms-p50")
	b.ReportMetric(percentile(times, 99), "ms-p99")
	b.ReportMetric(0, "ns/op")
}
