package adaptertest_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/apitokentest/adaptertest"
	"github.com/apitoken-go/apitoken/httpauth"
)

// overHTTP is httpauth behind a server: the same verdicts over a connection.
func overHTTP(t *testing.T, v apitoken.Validator) adaptertest.Adapter {
	auth := httpauth.New(v, &httpauth.Options{BaseURL: apitokentest.Audience})
	subject := make(chan string, 1)
	server := httptest.NewServer(auth.Require(adaptertest.Scope)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		subject <- apitoken.FromContext(r.Context()).Subject()
	})))
	t.Cleanup(server.Close)
	return adaptertest.Adapter{Method: "GET", URL: apitokentest.Audience + "/orders", Send: func(t *testing.T, h http.Header) adaptertest.Verdict {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/orders", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = h
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		saw := ""
		select {
		case saw = <-subject:
		default:
		}
		return adaptertest.HTTPVerdict(answer, saw)
	}}
}

func TestRun(t *testing.T) {
	t.Parallel()
	adaptertest.Run(t, overHTTP)
}

func ExampleRun() {
	_ = func(t *testing.T) { // func TestVerdicts(t *testing.T)
		adaptertest.Run(t, func(t *testing.T, v apitoken.Validator) adaptertest.Adapter {
			subject := ""
			guarded := httpauth.New(v, nil).Require(adaptertest.Scope)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				subject = apitoken.FromContext(r.Context()).Subject()
			}))
			return adaptertest.Adapter{Send: func(t *testing.T, h http.Header) adaptertest.Verdict {
				subject = ""
				r := httptest.NewRequest("POST", "/orders", nil)
				r.Header = h
				w := httptest.NewRecorder()
				guarded.ServeHTTP(w, r)
				return adaptertest.HTTPVerdict(w.Result(), subject)
			}}
		})
	}
}
