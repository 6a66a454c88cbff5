//go:build cgo

package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestHSM(t *testing.T) {
	var out strings.Builder
	err := run(context.Background(), &out, t.TempDir())
	if errors.Is(err, errNoHSM) && os.Getenv("APITOKEN_TEST_REQUIRE") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "is active, in the HSM"); n != 6 {
		t.Fatalf("%d of 6 runs signed in the HSM:\n%s", n, out.String())
	}
}
