"""The interfaces that every D-Bus object has, and the standard errors."""

from typing import Final

from migd.bus import contract

PREFIX: Final = "org.freedesktop.DBus"
PEER: Final = f"{PREFIX}.Peer"
INTROSPECTABLE: Final = f"{PREFIX}.Introspectable"
PROPERTIES: Final = f"{PREFIX}.Properties"
OBJECT_MANAGER: Final = f"{PREFIX}.ObjectManager"


class Refusal(Exception):
    """A call that is refused for reasons of D-Bus itself; the text is for the caller."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = f"{PREFIX}.Error.{name}"
        self.text = text


INTERFACES: Final = contract.load("""
<node>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId">
      <arg name="machine_uuid" type="s" direction="out"/>
    </method>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect">
      <arg name="xml_data" type="s" direction="out"/>
    </method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object_path" type="o"/>
      <arg name="interfaces_and_properties" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object_path" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
</node>
""").interfaces
