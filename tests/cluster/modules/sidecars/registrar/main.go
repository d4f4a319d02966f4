// Stands in for node-driver-registrar, which no Go proxy has as a module: tells kubelet of the driver, through the socket that kubelet's plugin watcher
// looks for, and goes when kubelet refuses it or its connection to the driver is lost, as the real one does.
package main

import (
	"context"
	"errors"
	"flag"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/connection"
	"github.com/kubernetes-csi/csi-lib-utils/rpc"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type server struct {
	registration.UnimplementedRegistrationServer
	driver, endpoint string
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              s.driver,
		Endpoint:          s.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (s *server) NotifyRegistrationStatus(
	_ context.Context, status *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		klog.ErrorS(nil, "kubelet refused the driver", "reason", status.Error)
		os.Exit(1)
	}
	klog.InfoS("registered", "driver", s.driver, "endpoint", s.endpoint)
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	klog.InitFlags(nil)
	address := flag.String("csi-address", "/run/csi/socket", "where the driver listens")
	endpoint := flag.String("kubelet-registration-path", "", "the same socket, as kubelet sees it")
	directory := flag.String("plugin-registration-path", "/registration", "kubelet's plugins_registry")
	timeout := flag.Duration("timeout", time.Second, "how long the driver may take to tell its name")
	health := flag.String("http-endpoint", "", "where to listen for GET /healthz; nowhere, if empty")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	conn, err := connection.ConnectWithoutMetrics(ctx, *address, connection.OnConnectionLoss(connection.ExitOnConnectionLoss()))
	exitOn(err)
	named, cancel := context.WithTimeout(ctx, *timeout)
	driver, err := rpc.GetDriverName(named, conn)
	cancel()
	exitOn(err)

	socket := filepath.Join(*directory, driver+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		exitOn(err)
	}
	listener, err := net.Listen("unix", socket)
	exitOn(err)
	if *health != "" {
		http.HandleFunc("/healthz", func(writer http.ResponseWriter, _ *http.Request) {
			if _, err := os.Stat(socket); err != nil {
				http.Error(writer, err.Error(), http.StatusInternalServerError)
			}
		})
		go func() { exitOn(http.ListenAndServe(*health, nil)) }()
	}
	registrations := grpc.NewServer()
	registration.RegisterRegistrationServer(registrations, &server{driver: driver, endpoint: *endpoint})
	go func() {
		<-ctx.Done()
		registrations.GracefulStop() // removes the socket, by which kubelet sees that the driver is gone
	}()
	exitOn(registrations.Serve(listener))
}

func exitOn(err error) {
	if err != nil {
		klog.ErrorS(err, "giving up")
		os.Exit(1)
	}
}
