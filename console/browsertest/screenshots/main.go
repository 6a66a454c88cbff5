// Screenshots makes the pictures of docs/console.md, with a Chromium that is installed:
//
//	go run ./console/browsertest/screenshots docs/console
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/apitoken-go/apitoken/console/browsertest/demo"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: screenshots DIRECTORY")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "screenshots:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d, err := demo.Start()
	if err != nil {
		return err
	}
	defer d.Close()
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox)...)
	defer cancel()
	ctx, cancel := chromedp.NewContext(alloc)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, s := range []struct {
		name, user, path, theme string
		width                   int64
	}{
		{"keys.png", "mira", "/keys", "light", 1280},
		{"key-new.png", "mira", "/keys/new", "light", 1280},
		{"keys-narrow-dark.png", "mira", "/keys", "dark", 390},
		{"overview.png", "olga", "/admin", "light", 1280},
	} {
		var png []byte
		err := chromedp.Run(ctx,
			chromedp.EmulateViewport(s.width, 800),
			emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: s.theme}}),
			chromedp.Navigate(d.Server.URL+"/as/"+s.user),
			chromedp.Navigate(d.Server.URL+"/account"+s.path),
			chromedp.FullScreenshot(&png, 100),
		)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, s.name), png, 0o644); err != nil {
			return err
		}
	}
	return nil
}
